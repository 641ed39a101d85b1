"""Who lives: which tasks of a connected cluster answer, which are lost, and which have returned."""

import functools
import threading
import time
import weakref
from typing import NamedTuple

from tfps import _tf_members
from tfps.cluster import connections, ending, greeting
from tfps.cluster.greeting import Answer
from tfps.cluster.spec import Cluster

# s that a task may take to answer one question, and the pause before the next question.
_ASK = 2.0
_PAUSE = 1.0

# s after which a first refusal is confirmed.
_CONFIRM = 0.1

# s for which a process that was silent has to answer until it counts as returned. A worker that
# finds that it was frozen for long starts anew, within a second or so.
_STEADY = 3.0

# s after the last `attend` for which the tasks are still asked.
_ATTENTION = 20.0

# s without an answer after which a worker counts as lost. A parameter server holds what training
# has learned, so more patience is had with it.
WORKER_PATIENCE = 10.0
PS_PATIENCE = 60.0


class Task(NamedTuple):
    """A worker or a parameter server.

    Attributes:
      job: `worker` or `ps`.
      index: its index in the job.
    """

    job: str
    index: int  # type: ignore[assignment]  # A tuple has a method of this name.

    def __str__(self) -> str:
        return f"{self.job} {self.index}"


class Loss(NamedTuple):
    """What is known of a lost task.

    Attributes:
      why: what happened, as a sentence that follows the task's name: "does not answer for 10 s".
      noticed: time (`time.monotonic`, in s) at which it was noticed.
    """

    why: str
    noticed: float


class Members:
    """Asks the servers of a cluster whether they live, side by side, each by a thread of its own.

    They are asked only while somebody `attend`s: a cluster on which nothing is waited for is left
    alone. Nobody who asks this object waits for a server. A task is lost at once when its host says
    that no process listens, or when another process has taken its place; and it is lost when it
    stays silent for longer than the patience with its job. Then this process's connections to it
    are shut, so that all calls that wait for it fail. It stays lost until `Reconnecting` has taken
    it in again, even if it answers.
    """

    def __init__(
        self,
        cluster: Cluster,
        worker_patience: float = WORKER_PATIENCE,
        ps_patience: float = PS_PATIENCE,
    ):
        """Takes all tasks for alive, and asks nobody yet.

        Args:
          cluster: whose servers are asked. This process is connected to it.
          worker_patience: s that a worker may be silent.
          ps_patience: s that a parameter server may be silent.
        """
        self.patience = {"worker": worker_patience, "ps": ps_patience}
        self._watches = {
            task: _Watch(self, task, address)
            for job in ("worker", "ps")
            for task, address in (
                (Task(job, i), address) for i, address in enumerate(cluster.spec[job])
            )
        }
        self._changed = threading.Condition()
        self._until = 0.0

    def address(self, task: Task) -> str:
        """Returns the task's `host:port`."""
        return self._watches[task].address

    def tasks(self) -> list[Task]:
        """Returns all workers and parameter servers, lost ones included."""
        return list(self._watches)

    def attend(self) -> None:
        """Has the servers asked for the next 20 s; whoever waits for calls repeats this."""
        now = time.monotonic()
        # A second's difference is none: this is called for each of many short calls.
        if now + _ATTENTION - self._until < 1.0:
            return
        self._until = now + _ATTENTION
        for watch in self._watches.values():
            watch.start()

    @property
    def attended(self) -> bool:
        """Whether the tasks are being asked."""
        return time.monotonic() < self._until and not ending.has_begun()

    def suspect(self, *tasks: Task) -> None:
        """Has tasks asked at once, who they are too, because a call on them failed.

        Args:
          *tasks: the tasks; none means all.
        """
        self.attend()
        for task in tasks or self._watches:
            self._watches[task].suspect()

    def settle(self, *tasks: Task, timeout: float = _ASK + 1.0) -> frozenset[Task]:
        """Waits until every suspected task has answered, or is lost; returns all that are lost.

        Args:
          *tasks: the tasks to wait for; none means all.
          timeout: s after which a task that is silent, but not lost yet, is no longer waited for.
        """
        watches = [self._watches[task] for task in tasks or self._watches]
        with self._changed:
            self._changed.wait_for(lambda: not any(w.open for w in watches), timeout)
        return self.lost()

    def lost(self) -> frozenset[Task]:
        """Returns the tasks that are lost, whether or not they answer again."""
        return frozenset(task for task, watch in self._watches.items() if watch.loss is not None)

    def loss(self, task: Task) -> Loss | None:
        """Returns what is known of a lost task; None for a task that is not lost."""
        return self._watches[task].loss

    def returned(self) -> frozenset[Task]:
        """Returns the lost tasks that answer again, and wait to be taken in."""
        return frozenset(task for task, watch in self._watches.items() if watch.has_returned())

    def life(self, task: Task) -> int:
        """Returns how often a task has been taken in again; its memory was empty each time."""
        return self._watches[task].life

    def end_of(self, task: Task, life: int) -> str | None:
        """Returns what ended a task's life, of that number, as in `Loss`; None if it goes on."""
        # In this order, as `admit` counts the next life before it takes the loss back.
        if (loss := self.loss(task)) is not None:
            return loss.why
        return None if self.life(task) == life else "was started anew"

    def silent(self) -> frozenset[Task]:
        """Returns the tasks that do not answer at present, but are not lost yet."""
        return frozenset(t for t, w in self._watches.items() if w.loss is None and w.failures)

    def wait_lost(self, timeout: float, known: frozenset[Task] = frozenset()) -> frozenset[Task]:
        """Waits until there is a lost task that is not among the known ones; returns all lost ones.

        Args:
          timeout: s to wait at most. The servers are asked meanwhile.
          known: tasks that the caller knows to be lost.
        """
        return self._wait(lambda: self.lost() - known, timeout) and self.lost()

    def wait_returned(self, timeout: float) -> frozenset[Task]:
        """Waits until a lost task answers again; returns all that do. See `wait_lost`."""
        return self._wait(self.returned, timeout)

    def wait_back(self, task: Task, timeout: float) -> bool:
        """Waits until a task is not lost any more; returns whether it is so. See `wait_lost`."""
        return bool(self._wait(lambda: frozenset([task]) - self.lost(), timeout))

    def _wait(self, found, timeout: float) -> frozenset[Task]:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (tasks := found()) and (left := deadline - time.monotonic()) > 0:
                self.attend()
                self._changed.wait(min(left, _ATTENTION / 2))
        return tasks

    def lose(self, task: Task, why: str) -> None:
        """Notes that a task is lost.

        Args:
          task: the task.
          why: see `Loss`.
        """
        self._watches[task].lose(why)

    def leave(self, task: Task, why: str) -> None:
        """Notes that a task is about to end; until now, its answers are no sign of its return.

        Args:
          task: the task.
          why: see `Loss`.
        """
        watch = self._watches[task]
        watch.lose(why)
        watch.answers_since = None

    def move(self, task: Task, address: str) -> None:
        """Notes that another server takes a lost task's place, and waits to be taken in.

        Args:
          task: the task.
          address: `host:port` of the server.
        """
        watch = self._watches[task]
        with self._changed:
            watch.address, watch.answers_since, watch.failures = address, None, 0
        watch.suspect()

    def admit(self, task: Task, incarnation: int | None) -> None:
        """Notes that a task has been taken in again, with the incarnation of its process."""
        watch = self._watches[task]
        with self._changed:
            # Nobody who reads takes the lock: who sees no loss any more is to see the new life.
            watch.life += 1
            watch.incarnation, watch.failures, watch.replaced = incarnation, 0, False
            watch.loss = None
            self._changed.notify_all()


class _Watch:
    """What is known of one task, and the thread that asks it.

    Attributes:
      address: its `host:port`.
      loss: the loss, or None while the task is not lost.
      failures: number of questions in a row that were not answered.
      answers_since: since when (`time.monotonic`, in s) all questions have been answered; None if
        the last one was not.
      replaced: whether another process answers than the one that was lost.
      life: how often the task has been taken in again.
      incarnation: that of the process whose memory this process uses; None until it is known.
      open: whether a suspicion has not been looked into yet.
    """

    def __init__(self, members: Members, task: Task, address: str):
        self.address = address
        self.loss: Loss | None = None
        self.failures = 0
        self.answers_since: float | None = time.monotonic()
        self.replaced = False
        self.life = 0
        self.incarnation: int | None = None
        self.open = False
        self._members = weakref.ref(members)
        self._task = task
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._suspecting = threading.Lock()
        self._starting = threading.Lock()

    def start(self) -> None:
        """Starts the thread if it does not run."""
        with self._starting:
            if self._thread is None:
                name = f"tfps-watches-{self._task.job}-{self._task.index}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def suspect(self) -> None:
        """Has the task asked at once."""
        with self._suspecting:
            self.open = True
            self._wake.set()

    def has_returned(self) -> bool:
        """Returns whether the task is lost, but can be taken in again."""
        since = self.answers_since
        steady = since is not None and time.monotonic() - since >= _STEADY
        return self.loss is not None and (steady or (since is not None and self.replaced))

    def lose(self, why: str) -> None:
        """Notes that the task is lost."""
        members = self._members()
        if members is None:
            return
        with members._changed:
            if self.loss is None:
                self.loss = Loss(why, time.monotonic())
            self.open = False
            members._changed.notify_all()

    def _run(self) -> None:
        identify = True  # Somebody else may have taken the task's place while nobody asked.
        # A task that is lost before it has ever answered is to be known when it returns, too.
        self._learn_incarnation()
        while self._is_attended():
            self._wake.clear()
            identify = identify or self.open
            begun, life, address = time.monotonic(), self.life, self.address
            answer = greeting.greet(address, _ASK)
            number = None
            if identify and answer is Answer.ANSWERS:
                number = _tf_members.incarnation(greeting.status(address, _ASK))
            if life != self.life or address != self.address:
                identify = True  # The task was taken in, or moved, meanwhile: the answer is older.
                continue
            identify = self._note(answer, identify, number)
            if answer is Answer.SILENT:
                # A host without a name, or without a way to it, is as silent, but at once.
                self._wake.wait(begun + _ASK - time.monotonic())
            else:
                # A process that ends may hang up before it stops listening.
                again = answer is Answer.GONE and self.failures == 1
                self._wake.wait(_CONFIRM if again else _PAUSE)

    def _is_attended(self) -> bool:
        members = self._members()
        with self._starting:
            asked = self.open and not ending.has_begun()
            attended = members is not None and (members.attended or asked)
            if not attended:
                self._thread = None
        return attended

    def _note(self, answer: Answer, identify: bool, number: int | None) -> bool:
        """Draws the conclusions; returns whether the task still has to say who it is."""
        if answer is Answer.ANSWERS:
            return self._note_answer(identify, number)
        members = self._members()
        if members is None:
            return True
        self.failures += 1
        self.open = self.open and self.loss is None
        self._tell(since=None)
        patience = members.patience[self._task.job]
        if answer is Answer.GONE and self.failures > 1:
            self.lose("is gone: no process listens at its address")
        elif self.failures * _ASK >= patience:
            self.lose(f"has not answered for {self.failures * _ASK:.0f} s")
            connections.cut(self.address)
        return True

    def _note_answer(self, identify: bool, number: int | None) -> bool:
        if identify:
            self._learn_incarnation()
            self.replaced = number is not None and self.incarnation not in (None, number)
            if self.replaced:
                self.lose("was started anew: another process answers at its address")
            identify = number is None
        self.failures = 0
        with self._suspecting:
            # Who was suspected since the question was sent has to be asked once more.
            unanswered = identify or self._wake.is_set()
            self.open = self.open and unanswered and self.loss is None
        self._tell(since=self.answers_since or time.monotonic())
        return identify

    def _learn_incarnation(self) -> None:
        if self.incarnation is None and self.loss is None:
            self.incarnation = _tf_members.incarnations().get(self._task)

    def _tell(self, since: float | None) -> None:
        members = self._members()
        if members is not None:
            with members._changed:
                self.answers_since = since
                members._changed.notify_all()


_of: "weakref.WeakKeyDictionary[Cluster, Members]" = weakref.WeakKeyDictionary()
_making = threading.Lock()


def of(cluster: Cluster) -> Members:
    """Returns the members of a cluster; all who use the cluster share them."""
    with _making:
        if cluster not in _of:
            _of[cluster] = Members(cluster)
            ending.cut_by(functools.partial(_cut, weakref.ref(_of[cluster])))
        return _of[cluster]


def _cut(members: "weakref.ref[Members]") -> None:
    """Shuts the connections to all servers."""
    if (known := members()) is not None:
        for task in known.tasks():
            connections.cut(known.address(task))
