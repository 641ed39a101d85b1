"""The scheduled closures: which of them wait, which run, and what went wrong."""

import collections
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures, health
from tfps.cluster.spec import Cluster
from tfps.coordinator.closures import ClosureLane, Round
from tfps.coordinator.remote_value import RemoteValue

# Closures that may wait before `put` blocks: TensorFlow's limit.
_LIMIT = 256 * 1024


class Output(Protocol):
    """Whatever receives the result or the error of a closure."""

    def _set(self, result: Any, error: BaseException | None) -> None:
        """Fills in the result or the error."""


class Queued(Protocol):
    """A closure, as the queue sees it.

    Attributes:
      output: returns what receives the result, or None if nobody holds it any more.
      round: the round in which the closure runs; None if `join` does not wait for it.
    """

    round: Round | None

    @property
    def output(self) -> Callable[[], Output | None]:
        """Returns a weak reference, or a function like one."""

    def run(self, lane: Any) -> Any:
        """Runs the closure under the device of the lane's worker and returns its result."""


class WorkQueue:
    """One queue for all workers, a queue of each worker's own, and the account of both.

    A lane takes a closure and reports what became of it. The chief's threads wait here for
    closures, and whoever waits for long asks whether all servers are still there.

    Attributes:
      cluster: the cluster whose workers run the closures.
      lanes_per_worker: number of closures that a worker runs at the same time, at most.
    """

    def __init__(self, cluster: Cluster):
        """Has no lanes yet.

        Args:
          cluster: whose workers run the closures.
        """
        self.cluster = cluster
        self.lanes_per_worker = 1
        self._lanes: list[ClosureLane] = []
        self._health = health.Health(cluster, self._lanes)
        self._queue: collections.deque = collections.deque()
        self._own: list[collections.deque] = [
            collections.deque() for _ in range(cluster.num_workers)
        ]
        self._round = Round()
        self._stopped = False
        # A coordinator that is collected stops the queue. The garbage collector may run at any
        # line, also while the same thread holds the lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        self._resized = threading.Condition(self._lock)
        self._idle = 0
        # What is scheduled while a `join` waits, waits for it.
        self._joining = threading.Lock()

    # The chief's side.

    def put(self, closure: Queued) -> None:
        """Queues a closure for any worker; blocks while the queue is full.

        Raises:
          Exception: the error of an earlier closure.
        """
        with self._joining, self._lock:
            self._raise_pending()
            if len(self._queue) >= _LIMIT:
                self._wait(self._room, lambda: len(self._queue) < _LIMIT)
                self._raise_pending()
            self._queue.append(closure)
            _tf.set_gauge("queued_closures", len(self._queue))
            if self._idle:
                self._work.notify()

    def put_on(self, worker: int, closure: Queued, joined: bool = False) -> None:
        """Queues a closure for one worker, before all closures that any worker may run.

        Args:
          worker: index of the worker.
          closure: the closure.
          joined: whether `join` waits for it, and raises its error.
        """
        with self._lock:
            if joined:
                self._begin(closure)
            self._own[worker].append(closure)
            self._work.notify_all()

    @property
    def manager(self) -> _tf.CancellationManager:
        """What cancels the closures that are scheduled now, if one of them fails."""
        return self._round.manager

    @property
    def inflight(self) -> int:
        """Number of closures that run."""
        return self._round.inflight

    def join(self) -> None:
        """Waits until no closure waits or runs.

        Raises:
          Exception: the error of a closure. The closures that ran or waited have been cancelled.
        """
        with self._joining, self._lock:
            self._wait(self._settled, self._is_settled)
            self._raise_pending()

    def done(self) -> bool:
        """Returns whether no closure waits or runs; raises like `join`."""
        with self._lock:
            self._raise_pending()
            if self._is_settled():
                return True
            if self._health.due:
                self._look()
                self._raise_pending()
            return False

    def wait_for(self, value: RemoteValue) -> None:
        """Waits until the value or its error is there.

        Raises:
          TaskLost: a server is gone.
        """
        with self._lock:
            ready = value._waiter()
        while not ready.wait(health.PATIENCE):
            with self._lock:
                lost = self._look()
            if lost is not None:
                raise lost

    def errors_named(self) -> contextlib.AbstractContextManager[None]:
        """Names the errors of copying to the chief; see `Health`."""
        return self._health.errors_named()

    def start_lanes(self) -> None:
        """Starts the lanes that are missing. The coordinator calls this when there is work."""
        wanted = self.lanes_per_worker * self.cluster.num_workers
        if len(self._lanes) >= wanted:
            return
        with self._lock:
            while len(self._lanes) < wanted:
                index, worker = divmod(len(self._lanes), self.cluster.num_workers)
                lane = ClosureLane(worker, self, index)
                self._lanes.append(lane)
                lane.start()

    def resize(self, lanes_per_worker: int) -> None:
        """Sets how many lanes of a worker may work. The lanes beyond that number pause."""
        with self._lock:
            self.lanes_per_worker = lanes_per_worker
            self._work.notify_all()
            self._resized.notify_all()

    def stop(self) -> None:
        """Cancels everything and ends the lanes."""
        with self._lock:
            self._stopped = True
            self._cancel_waiting()
            for own in self._own:
                own.clear()
            self._round.manager.start_cancel()
            self._work.notify_all()
            self._resized.notify_all()

    # The lanes' side.

    def take(self, lane: ClosureLane) -> Queued | None:
        """Waits for the next closure for a lane; None when it is all over."""
        own = self._own[lane.worker]
        with self._lock:
            while not self._stopped:
                if lane.index >= self.lanes_per_worker:
                    self._resized.wait()
                    continue
                if own:
                    return own.popleft()
                if self._queue:
                    if len(self._queue) == _LIMIT:
                        self._room.notify()
                    closure = self._queue.popleft()
                    _tf.set_gauge("queued_closures", len(self._queue))
                    self._begin(closure)
                    return closure
                self._idle += 1
                try:
                    self._work.wait()
                finally:
                    self._idle -= 1
            return None

    def finished(
        self,
        lane: ClosureLane,
        closure: Queued,
        result: Any,
        error: BaseException | None,
    ) -> None:
        """Takes note of a closure's result or error."""
        its_round = closure.round
        if error is not None and not _was_cancelled(error, its_round):
            error = self._health.named(lane.worker, error)
        with self._lock:
            output = closure.output()
            if output is not None:
                output._set(result, error)
            if its_round is None:
                return
            its_round.inflight -= 1
            _tf.set_gauge("inflight_closures", its_round.inflight)
            if error is not None:
                self._fail(its_round, error)
            if not its_round.inflight and not self._queue:
                self._settled.notify_all()

    # With the lock held.

    def _begin(self, closure: Queued) -> None:
        closure.round = self._round
        self._round.inflight += 1
        _tf.set_gauge("inflight_closures", self._round.inflight)

    def _is_settled(self) -> bool:
        return not self._queue and not self._round.inflight

    def _fail(self, its_round: Round, error: BaseException) -> None:
        if its_round is self._round and its_round.error is None:
            its_round.error = error
            self._cancel_waiting()
            self._settled.notify_all()

    def _cancel_waiting(self) -> None:
        while self._queue:
            output = self._queue.popleft().output()
            if output is not None:
                output._set(None, _cancelled())
        self._room.notify_all()

    def _raise_pending(self) -> None:
        if self._round.error is None:
            return
        failed = self._round
        failed.manager.start_cancel()
        deadline = time.monotonic() + health.DRAIN
        while failed.inflight and time.monotonic() < deadline:
            self._settled.wait(deadline - time.monotonic())
        # What a lost task was doing may never return; it belongs to its round.
        if self._round is failed:
            self._round = Round()
            assert failed.error is not None
            raise failed.error

    def _wait(self, condition: threading.Condition, reached: Callable[[], bool]) -> None:
        """Waits until `reached()`, or until there is an error to raise."""
        while not reached() and self._round.error is None:
            if not condition.wait(health.PATIENCE) and self._health.due:
                self._look()

    def _look(self) -> BaseException | None:
        """Asks after calls that take long; returns the error if a server is gone."""
        self._lock.release()
        try:
            self._health.look()
            return None
        except errors.TaskLost as e:
            lost = failures.unavailable(e)
        finally:
            self._lock.acquire()
        self._fail(self._round, lost)
        return lost


def _was_cancelled(error: BaseException, its_round: Round | None) -> bool:
    """Whether the chief itself ended the call."""
    cancelled = its_round is not None and its_round.manager.is_cancelled
    return cancelled and isinstance(error, tf.errors.CancelledError)


def _cancelled() -> tf.errors.CancelledError:
    return tf.errors.CancelledError(
        None,
        None,
        "The corresponding function is cancelled. Please reschedule the function. (It did not run, "
        "because another one failed.)",
    )
