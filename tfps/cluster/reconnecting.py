"""Who returns: takes tasks that were lost and answer again into this process's context.

TensorFlow can change the tasks of a context while calls on the other tasks go on. Its change waits
for every task without a limit, and it empties the memory of a task that it takes for another one.
So nobody is in the context who does not answer when the change begins, the change runs in a thread
that may be left behind, and afterwards each task has to show that it still has its memory.
"""

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable

import tensorflow as tf

from tfps import _tf, _tf_copies, _tf_members, _tf_resources, errors
from tfps.cluster import connections, greeting, made_before, turns
from tfps.cluster.members import Members, Task

# s between two looks at a change that waits for a task.
_LOOK = 0.2

# s after which it is asked whether the processes that join are those with which a change began; of
# others, what the change asks is made to fail. After the second time that holds for all.
_STUCK, _HOPELESS = 10.0, 300.0

# s that a process that joins may take to say who it is.
_ANSWER = 2.0

# What `_tf_resources.connection` returns.
_Connection = tuple[bytes, str, str] | None

_lock = threading.Lock()
_present: "_Under | None" = None  # A context has one change at a time.

# What each task that stays has to show after a change.
_tokens: "weakref.WeakKeyDictionary[Members, dict[Task, _tf_members.Token]]" = (
    weakref.WeakKeyDictionary()
)


def reconnect(
    members: Members, tasks: Iterable[Task] | None = None, timeout: float = 20.0
) -> frozenset[Task]:
    """Takes tasks that have returned into the context, and leaves lost ones out of it.

    The memory of a task that is taken in is empty. Variables, datasets and functions' calls on the
    other tasks stay as they are. If a task that is not lost is silent at present, nothing is done,
    since the change would wait for it, and would cost a parameter server its variables.

    Args:
      members: the members of the cluster to which this process is connected.
      tasks: lost tasks to take in; those that do not answer stay lost. None means all that have
        returned.
      timeout: s after which the change is left to itself. It may still succeed later.

    Returns:
      The tasks that were taken in. The caller tries again for the others.

    Raises:
      ConfigError: this process has connected to another cluster since.
    """
    global _present
    deadline = time.monotonic() + timeout
    members.suspect()
    members.settle()
    change = _Change(members, members.returned() if tasks is None else frozenset(tasks))
    with _lock:
        if _wait(_present, members, deadline):
            _present = _Under(change.run, change.still_joins)
            _wait(_present, members, deadline)
    if change.error is not None:
        raise change.error
    return change.admitted


def await_change(timeout: float) -> None:
    """Waits for a change that is under way, if there is one, for at most `timeout` s."""
    if (change := _present) is not None:
        change.thread.join(timeout)


class _Under:
    """A change that is under way, in a thread."""

    def __init__(
        self, run: Callable[[], None], still_joins: Callable[[Task], bool] = lambda task: False
    ):
        self.still_joins = still_joins
        self.thread = threading.Thread(target=run, name="tfps-reconnects", daemon=True)
        self.begun = time.monotonic()
        self.thread.start()


def _wait(change: _Under | None, members: Members, deadline: float) -> bool:
    """Waits for a change, in which calls to lost tasks are made to fail; returns if it ended.

    What a change asks of a task that dies while it joins, and is started again, may get no answer:
    TensorFlow waits for it without a limit. A task that lives may take its time, because the
    context's functions are sent to it one by one.
    """
    while change is not None and change.thread.is_alive():
        now = time.monotonic()
        if (left := deadline - now) <= 0:
            return False
        members.attend()
        spared, seconds = members.returned(), now - change.begun
        if seconds >= _STUCK:
            spared = frozenset(t for t in spared if seconds < _HOPELESS and change.still_joins(t))
        for task in members.lost() - spared:
            connections.cut(members.address(task))
        change.thread.join(min(left, _LOOK))
    return True


class _Change:
    """A change of the context's tasks, run by a thread.

    Attributes:
      admitted: the tasks that were taken in.
      error: what went wrong with the process itself.
    """

    def __init__(self, members: Members, tasks: frozenset[Task]):
        self.admitted: frozenset[Task] = frozenset()
        self.error: errors.Error | None = None
        self._members = members
        self._tasks = tasks
        self._joining: dict[Task, int | None] = {}  # with the numbers of their processes
        self._known = _tokens.setdefault(members, {})

    def run(self) -> None:
        try:
            self._run()
        except errors.ConfigError as e:
            self.error = e

    def _run(self) -> None:
        members = self._members
        joining = self._tasks & members.returned()
        if members.silent() or not joining:
            return
        since = _tf_resources.connection()
        connected = _tf_members.connected_tasks()
        staying = [t for t in members.tasks() if t in connected and t not in members.lost()]
        if any(connected[t] != members.address(t) for t in staying):
            raise _elsewhere()
        self._mark(staying)
        self._joining = {task: self._number(task) for task in joining}
        leaving = [t for t in members.lost() - joining if t in connected]
        # If one of several tasks failed while they joined, TensorFlow has the others' contexts, but
        # not their devices. Such a task leaves before it joins. Otherwise one change does both:
        # each change leaves four threads of TensorFlow's behind.
        half = [t for t in joining & connected.keys() if t not in _tf_members.incarnations()]
        if half:
            since = _connect(since, without=leaving + half)
            leaving = []
        _connect(since, [(*t, members.address(t)) for t in joining], leaving)
        self._require(staying)
        self.admitted = self._admit(joining)

    def still_joins(self, task: Task) -> bool:
        """Whether a task is the process with which the change began, as far as it says so."""
        known = self._joining.get(task)
        return known is not None and known == self._number(task)

    def _number(self, task: Task) -> int | None:
        return _tf_members.incarnation(greeting.status(self._members.address(task), _ANSWER))

    def _mark(self, tasks: list[Task]) -> None:
        for task in tasks:
            if task not in self._known:
                self._make(task)

    def _make(self, task: Task) -> bool:
        try:
            self._known[task] = _tf_members.Token(*task)
        except tf.errors.OpError:
            return False  # Whoever calls it will see the same error, and suspect the task.
        return True

    def _require(self, tasks: list[Task]) -> None:
        for task in tasks:
            if task in self._known and not self._known[task].is_there():
                self._members.lose(task, "has lost its memory while others joined the cluster")

    def _admit(self, tasks: frozenset[Task]) -> frozenset[Task]:
        admitted = []
        incarnations = _tf_members.incarnations()
        for task in tasks:
            self._known.pop(task, None)
            _tf_copies.joined(*task)
            if task in incarnations and self._make(task):
                self._members.admit(task, incarnations[task])
                admitted.append(task)
        return frozenset(admitted)


def _elsewhere() -> errors.ConfigError:
    return errors.ConfigError(
        "this process has connected to another cluster since; make the strategy anew"
    )


def _connect(since: _Connection, joining: Iterable = (), without: Iterable = ()) -> _Connection:
    """Changes the tasks of a connection, and returns the connection as it is afterwards.

    Raises:
      ConfigError: this process is connected otherwise than it was (`since`).
    """
    joining, without = list(joining), list(without)
    if joining or without:
        # TensorFlow times the changes by which tasks come back, those that fail left out.
        timed = _tf.timed("server_def_update") if joining else contextlib.nullcontext()
        with turns.change():
            if _tf_resources.connection() != since:
                raise _elsewhere()
            # What has become of whom is looked at afterwards.
            with contextlib.suppress(tf.errors.OpError, RuntimeError), timed:
                _tf_members.connect(joining, without)
        made_before.tasks_changed()
    return _tf_resources.connection()
