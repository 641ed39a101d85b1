"""The Trainer's calls on workers: one at a time on each, and results in the order of their ends."""

import contextlib
import functools
import math
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tfps import _tf, errors, exit_codes
from tfps.cluster import failures, health, loss_policy, members, sockets
from tfps.cluster.admissions import Admissions
from tfps.cluster.asking import Asker
from tfps.cluster.departures import Departures
from tfps.cluster.events import Completion, Leaves, Lost, Returned
from tfps.cluster.lanes import Lane
from tfps.cluster.loss_policy import LossPolicy
from tfps.cluster.lost_servers import LostServers
from tfps.cluster.members import Task
from tfps.cluster.spec import Cluster
from tfps.cluster.submitted import LaneSource, Submitted

# s between two looks at who lives, while results are waited for: at ease, and when somebody is
# in doubt.
_LOOK, _LOOK_IN_DOUBT = 0.5, 0.02

# s after which a call's error is the call's own, if its worker answers.
_DOUBT = 3.0


class _Doubt(NamedTuple):
    """A call that failed in a way in which calls fail when a task is lost."""

    call: Submitted
    error: BaseException
    since: float


class WorkerCalls:
    """Runs functions on workers, one at a time on each, and hands back their results.

    A worker's life lasts from its start to its first call that fails because the worker is lost.
    Nothing that an earlier life was given comes back as the result of a later one.

    Attributes:
      pending: number of calls whose results `next` has not handed back.
      ask: calls a function by which the chief itself asks servers; see `Asker`.
      servers: waits for parameter servers that are lost.
      living: the workers that can be given calls.
      lives: per worker, the number of its present life.
      is_leaving: asked while lost tasks are waited for: whether this process was told to end. It
        then does.
      events: losses, and workers that leave, that were noticed while nobody called `next`.
    """

    def __init__(
        self,
        cluster: Cluster,
        limit: float = math.inf,
        policy: LossPolicy = loss_policy.DEFAULT,
    ):
        """Starts a lane for each worker.

        Args:
          cluster: whose workers are called.
          limit: s that a call may take.
          policy: what is done about lost tasks.
        """
        self.pending = 0
        self.ask = Asker(cluster, limit)
        self.min_workers, self.task_timeout = policy.min_workers, policy.task_timeout
        self.living = set(range(cluster.num_workers))
        self.lives = [0] * cluster.num_workers
        self.is_leaving: Callable[[], bool] = lambda: False
        self.events: list[Lost | Leaves] = []
        self._departures = Departures(cluster)
        self._leaving: set[int] = set()  # living workers of which `next` has told
        self._cluster, self._limit = cluster, limit
        self._members = members.of(cluster)
        # Per worker, its life as `members` counts them, which others may have begun.
        self._known = [self._life_of(w) for w in range(cluster.num_workers)]
        self.servers = LostServers(cluster, self._members, policy)
        self._strays = False  # whether calls may still run that `drain` gave up on
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self._admissions = Admissions(self._members)
        self._present: dict[int, Submitted] = {}  # worker -> the call that it is in
        self._doubts: dict[int, _Doubt] = {}
        self._todo: list[queue.SimpleQueue] = []
        self._lanes: list[Lane] = []
        self._looked = time.monotonic()
        self._health = health.Health(cluster, self._lanes, limit)
        for w in range(cluster.num_workers):
            self._todo.append(queue.SimpleQueue())
            self._lanes.append(Lane(w, LaneSource(self._todo[w])))
            self._lanes[w].start()

    @property
    def num_workers(self) -> int:
        """Number of workers that the cluster has, lost ones included."""
        return len(self._todo)

    @property
    def workers(self) -> range:
        """The indices of all workers, lost ones included."""
        return range(self.num_workers)

    @property
    def num_ps(self) -> int:
        """Number of parameter servers."""
        return self._cluster.num_ps

    def ps_hosts(self) -> list[str]:
        """The name of the host of each parameter server."""
        return [sockets.split(address)[0] for address in self._cluster.spec["ps"]]

    @property
    def first(self) -> int:
        """The living worker of the lowest index."""
        return min(self.living, default=0)

    @property
    def enough(self) -> bool:
        """Whether as many workers live as are needed to go on."""
        return len(self.living) >= max(1, self.min_workers)

    def submit(self, worker: int, function: Callable[[], Any], tag: Any = None) -> None:
        """Queues `function()` to be called under the worker's device.

        Args:
          worker: index of a living worker that is in no call.
          function: the call. What it returns is the completion's value.
          tag: what the completion hands back with the value.
        """
        assert worker in self.living, worker  # Nobody would ever hear of the call.
        self.pending += 1
        call = self._present[worker] = Submitted(function, tag, self._done)
        self._todo[worker].put(call)

    def next(self, returns: bool = True) -> Completion | Lost | Returned | Leaves:
        """Waits for what happens next: a call has finished, or a worker was lost or has returned.

        Args:
          returns: whether lost workers may return.

        Raises:
          WorkerError: the call failed on its worker. The error names worker and address, and is
            an instance of TensorFlow's class too.
          TaskLost: a ps is lost; or too few workers live, and none returned in time.
          StepTimeout: all servers answer, but a call takes longer than the limit.
        """
        waits_since: float | None = None
        while True:
            if self.events:
                return self.events.pop(0)
            if returns and (arrived := self._admissions.take()) is not None:
                if (returned := self._admit(arrived)) is not None:
                    return returned
                continue
            with contextlib.suppress(queue.Empty):
                patience = _LOOK_IN_DOUBT if self._doubts else _LOOK
                worker, call, value, error = self._done.get(timeout=patience)
                if (event := self._end(worker, call, value, error, returns)) is not None:
                    return event
                continue
            self._look(returns)
            if self.pending and self.enough:
                waits_since = None
            elif not self.events:
                waits_since = self._wait_for_workers(waits_since)

    def _end(
        self,
        worker: int | None,
        call: Any,
        value: Any,
        error: BaseException | None,
        returns: bool,
    ) -> Completion | None:
        """What the end of a call means; None if it means nothing to the caller."""
        if worker is None:
            if error is None:
                return None  # Somebody has arrived.
            if failures.is_of_network(error):
                self._members.suspect()
                self._members.settle()
                self._note_lost()
            raise error
        if self._present.get(worker) is not call or not isinstance(call, Submitted):
            return None  # Of a life that is over.
        if error is not None and failures.is_of_network(error):
            # Nobody waits while somebody is asked.
            self._doubts[worker] = _Doubt(call, error, time.monotonic())
            self._members.suspect()
            return None
        del self._present[worker]
        self.pending -= 1
        # Calls may end so often that nobody ever waits.
        if time.monotonic() - self._looked > _LOOK:
            self._look(returns)
        if error is not None:
            raise self._health.named(worker, error)
        return Completion(worker, call.tag, value)

    def _look(self, returns: bool) -> None:
        """Looks at who lives, without asking anybody."""
        self._looked = now = time.monotonic()
        self._members.attend()
        self._departures.attend()
        self._note_lost()
        for worker in self._departures.told() & self.living - self._leaving:
            self._leaving.add(worker)
            self.events.append(Leaves(worker))
        for worker, doubt in list(self._doubts.items()):
            # Silence ends with an answer or a loss.
            if now - doubt.since > _DOUBT and not self._is_silent(worker):
                # The worker and the ps answer: the error is the call's own.
                del self._doubts[worker], self._present[worker]
                self.pending -= 1
                raise self._health.named(worker, doubt.error)
        self._health.require_in_time()
        if returns:
            self._seek_returned()

    def _is_silent(self, worker: int) -> bool:
        """Whether the worker, or a ps, does not answer at present, but is not lost yet."""
        return any(t.job == "ps" or t.index == worker for t in self._members.silent())

    def _note_lost(self) -> None:
        for worker in sorted(self.living):
            if (why := self._death_of(worker)) is not None:
                self._lose(worker, why)
        self._require_ps()

    def _life_of(self, worker: int) -> int:
        return self._members.life(Task("worker", worker))

    def _death_of(self, worker: int) -> str | None:
        """What ended the life of a living worker, as `members` knows; None if it goes on."""
        # Somebody else may have taken it in again, with an empty memory.
        return self._members.end_of(Task("worker", worker), self._known[worker])

    def _require_ps(self) -> None:
        """Raises `TaskLost` if a ps is known to be lost."""
        for task in sorted(self._members.lost()):
            if task.job == "ps":
                loss, address = self._members.loss(task), self._members.address(task)
                why = "is gone" if loss is None else loss.why
                raise failures.unavailable(errors.TaskLost(f"{task} ({address}) {why}"))

    def notice(self) -> None:
        """Notices the workers that were lost while nobody called them; waits for silent ones.

        Raises:
          TaskLost: a ps is lost.
        """
        self._members.suspect()
        self._members.settle()
        while any(task.job == "worker" for task in self._members.silent()):
            self._members.wait_lost(_LOOK, self._members.lost())
        self._note_lost()

    def require_servers(self) -> None:
        """Has all tasks asked, while somebody waits for a ps outside of `next`.

        Raises:
          TaskLost: a ps is lost.
        """
        self._members.attend()
        self._require_ps()

    def let_go(self, worker: int) -> None:
        """Lets a worker go that was told to end: nothing of it is outstanding any more.

        Its life ends. When the process is back at its address, the worker has returned.

        Args:
          worker: index of a worker that is in no call.
        """
        self._retire(worker)
        failures.say(f"worker {worker} was told to end, and has handed back what it held")
        self._members.leave(Task("worker", worker), "has left, because it was told to end")
        self._departures.let_go(worker)

    def _retire(self, worker: int) -> None:
        """Ends a life."""
        self.living.discard(worker)
        self._leaving.discard(worker)
        self.lives[worker] += 1
        # The lane may never come back from its call: the next life has one of its own.
        self._todo[worker].put(None)

    def _lose(self, worker: int, why: str) -> None:
        self._retire(worker)
        self._departures.forget(worker)
        self._doubts.pop(worker, None)
        call = self._present.pop(worker, None)
        self.pending -= call is not None
        tag = None if call is None else call.tag
        self._lanes[worker].begun = None
        self.events.append(Lost(worker, tag, call is not None, why))

    def _seek_returned(self) -> None:
        gone = {Task("worker", w) for w in range(self.num_workers) if w not in self.living}
        done = self._done
        self._admissions.seek(gone, lambda: done.put((None, None, None, None)))

    def _admit(self, worker: int) -> Returned | None:
        if worker in self.living or Task("worker", worker) in self._members.lost():
            return None
        self._todo[worker] = queue.SimpleQueue()
        self._lanes[worker] = Lane(worker, LaneSource(self._todo[worker]))
        self._lanes[worker].start()
        self._known[worker] = self._life_of(worker)
        self.living.add(worker)
        return Returned(worker)

    def await_servers(self) -> frozenset[int]:
        """Waits until every lost ps is back, with an empty memory; to be called between calls.

        Returns:
          The indices of the parameter servers that were lost.

        Raises:
          TaskLost: one of them did not return in time; see `LostServers`.
        """
        returned, known = self.servers.await_all(self._leave_if_told), self._members
        for worker in range(self.num_workers):
            task = Task("worker", worker)
            if worker in self.living and (why := self._death_of(worker)) is not None:
                self._lose(worker, why)
            if worker not in self.living and task not in known.lost():
                self._admit(worker)
                # Nobody who begins from now on has known its last life.
                self.events = [loss for loss in self.events if loss.worker != worker]
        return returned

    def _wait_for_workers(self, since: float | None) -> float:
        """Waits on for lost workers; returns since when (s)."""
        self._leave_if_told()
        now = time.monotonic()
        if since is None:
            lost = [w for w in range(self.num_workers) if w not in self.living]
            failures.say(
                f"{len(self.living)} of {self.num_workers} workers live, and min_workers is "
                f"{max(1, self.min_workers)}; waiting up to {self.task_timeout:g} s for worker "
                f"{', '.join(map(str, lost))} to return"
            )
            return now
        if now - since > self.task_timeout:
            raise failures.unavailable(
                errors.TaskLost(
                    f"{len(self.living)} of {self.num_workers} workers live, fewer than "
                    f"min_workers={max(1, self.min_workers)}, and none returned within "
                    f"task_timeout={self.task_timeout:g} s; start them again"
                )
            )
        return since

    def _leave_if_told(self) -> None:
        if self.is_leaving():
            failures.say("told to end by SIGTERM while lost tasks are waited for")
            exit_codes.terminate()

    def interrupt(self, error: BaseException) -> None:
        """Makes `next` raise an error that no call on a worker has raised."""
        self._done.put((None, None, None, error))

    def run_on_each(
        self, function: Callable[[int], Any], workers: Sequence[int] | None = None
    ) -> list[Any]:
        """Calls `function(worker)` under every living worker's device.

        Args:
          function: the call.
          workers: which workers; None for all.

        Returns:
          The results by worker; None for workers that are lost. A loss that is noticed here is
          handed out by `next`.

        Raises:
          ConfigError: other calls are under way.
          Exception: a call failed; see `next`.
        """
        if self.pending:
            raise errors.ConfigError(
                "the workers are in the middle of a step; call fit, evaluate and predict from "
                "on_epoch_end, not from a hook of a batch"
            )
        results: list[Any] = [None] * self.num_workers
        before, self.events = self.events, []
        for w in sorted(self.living):
            if workers is None or w in workers:
                self.submit(w, functools.partial(function, w))
        try:
            while self.pending:
                match self.next(returns=False):
                    case Completion(worker, _, value):
                        results[worker] = value
                    case Lost() | Leaves() as event:
                        before.append(event)
        except BaseException:
            self.drain()
            raise
        finally:
            self.events = before + self.events
        return results

    def settle(self) -> None:
        """Waits for calls that `drain` gave up on: they may still push."""
        if self._strays:
            self.run_on_each(lambda worker: None)
            self._strays = False

    def drain(self) -> None:
        """Waits for the calls under way and drops their results and errors."""
        deadline = time.monotonic() + health.DRAIN
        for worker in self._doubts:  # Their calls have ended, by errors.
            self._present.pop(worker, None)
        while self._present:
            try:
                found = self._done.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                # What a lost task was doing may never return.
                self._strays = True
                break
            worker, call, *_ = found
            if worker is not None and self._present.get(worker) is call:
                del self._present[worker]
        self._present, self._doubts, self.pending = {}, {}, 0
        # An error of a ps that nobody was waiting for is of a run that is over, and so is what a
        # lost worker was doing.
        self._done = queue.SimpleQueue()
        self.events = [
            one._replace(tag=None, busy=False) if isinstance(one, Lost) else one
            for one in self.events
        ]

    def close(self) -> None:
        """Ends the lanes, and the thread that asks, once their present calls return."""
        self.ask.close()
        for todo in self._todo:
            todo.put(None)

    def errors_named(self) -> contextlib.AbstractContextManager[None]:
        """Names the errors of what the chief itself asks of servers; see `Health`.

        Raises:
          ConfigError: this process is connected to no cluster any more. TensorFlow would take its
            own devices for the servers'.
        """
        if not _tf.is_connected():
            raise errors.ConfigError(
                "this process is no longer connected to the cluster: TensorFlow's context was made "
                "anew (by `context._reset_context`, for example) after the strategy; make the "
                "strategy, the model and the Trainer again"
            )
        return self._health.errors_named()
