"""The scheduled closures: which wait, which run, and what went wrong."""

import collections
import contextlib
import threading
import time

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures
from tfps.cluster.spec import Cluster
from tfps.coordinator.remote_value import RemoteValue

# Closures that may wait before `put` blocks: TensorFlow's limit.
_LIMIT = 256 * 1024

# s without news after which the servers are asked whether they live.
_PATIENCE = 5.0

# s to wait, after an error, for calls that were told to end.
_DRAIN = 20.0


class Round:
    """The time between two errors: a new one begins when an error has been raised.

    Attributes:
      inflight: closures that run.
      error: the first error, which has not been raised yet.
      manager: cancels what runs.
    """

    __slots__ = ("error", "inflight", "manager")

    def __init__(self):
        self.inflight = 0
        self.error: Exception | None = None
        self.manager = _tf.CancellationManager()


class WorkQueue:
    """One queue for all workers, one of each worker's own, and the account of both.

    A lane takes a closure and reports what became of it. Everybody else waits
    here, and whoever waits for long asks whether all servers are still there.
    """

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.lanes_per_worker = 1
        self._queue: collections.deque = collections.deque()
        self._own = [collections.deque() for _ in range(cluster.num_workers)]
        self._round = Round()
        self._stopped = False
        self._news = time.monotonic()
        # A coordinator that is garbage stops it, and is collected at any line, also under the lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        self._resized = threading.Condition(self._lock)
        self._idle = 0
        # What is scheduled while a `join` waits, waits for it.
        self._joining = threading.Lock()

    # The chief's side.

    def put(self, closure) -> None:
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
            if self._idle:
                self._work.notify()

    def put_on(self, worker: int, closure) -> None:
        """Queues a closure for one worker, before all that any worker may run."""
        with self._lock:
            self._own[worker].append(closure)
            self._work.notify_all()

    def join(self) -> None:
        """Waits until nothing waits or runs.

        Raises:
          Exception: the error of a closure; the others have been cancelled.
        """
        with self._joining, self._lock:
            self._wait(self._settled, self._is_settled)
            self._raise_pending()

    def done(self) -> bool:
        """Whether nothing waits or runs; raises like `join`."""
        with self._lock:
            self._raise_pending()
            if self._is_settled():
                return True
            if time.monotonic() - self._news > _PATIENCE:
                self._look()
                self._raise_pending()
            return False

    def wait_for(self, value: RemoteValue) -> None:
        """Waits until the value is there, or its error.

        Raises:
          TaskLost: a server is gone.
        """
        with self._lock:
            ready = value._waiter()
        while not ready.wait(_PATIENCE):
            with self._lock:
                lost = self._look()
            if lost is not None:
                raise lost

    @contextlib.contextmanager
    def errors_named(self):
        """Turns errors of copying to the chief into `TaskLost` where a server is gone."""
        try:
            yield
        except tf.errors.OpError as e:
            try:
                failures.require_alive(self.cluster, e)
            except errors.TaskLost as lost:
                raise failures.unavailable(lost, e) from e
            raise

    def resize(self, lanes_per_worker: int) -> None:
        """Sets how many lanes of a worker may work; others pause."""
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

    def take(self, worker: int, lane: int):
        """The next closure for a lane, and its round; None when it is all over.

        What belongs to the worker itself has no round: nobody joins it.
        """
        own = self._own[worker]
        with self._lock:
            while not self._stopped:
                if lane >= self.lanes_per_worker:
                    self._resized.wait()
                    continue
                if own:
                    return own.popleft(), None
                if self._queue:
                    if len(self._queue) == _LIMIT:
                        self._room.notify()
                    self._round.inflight += 1
                    return self._queue.popleft(), self._round
                self._idle += 1
                try:
                    self._work.wait()
                finally:
                    self._idle -= 1
            return None

    def finished(self, closure, its_round: Round | None, result, error) -> None:
        """Takes note of a closure's result or error."""
        with self._lock:
            self._news = time.monotonic()
            output = closure.output()
            if output is not None:
                output._set(result, error)
            if its_round is None:
                return
            its_round.inflight -= 1
            if error is not None:
                self._fail(its_round, error)
            if not its_round.inflight and not self._queue:
                self._settled.notify_all()

    # With the lock held.

    def _is_settled(self) -> bool:
        return not self._queue and not self._round.inflight

    def _fail(self, its_round: Round, error: Exception) -> None:
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
        deadline = time.monotonic() + _DRAIN
        while failed.inflight and time.monotonic() < deadline:
            self._settled.wait(deadline - time.monotonic())
        # What a lost task was doing may never return; it belongs to its round.
        if self._round is failed:
            self._round = Round()
            raise failed.error

    def _wait(self, condition: threading.Condition, reached) -> None:
        """Until `reached()`, or until there is an error to raise."""
        while not reached() and self._round.error is None:
            if not condition.wait(_PATIENCE) and time.monotonic() - self._news > _PATIENCE:
                self._look()

    def _look(self) -> Exception | None:
        """Asks the servers whether they live; the error if one does not."""
        self._news = time.monotonic()
        self._lock.release()
        try:
            failures.require_alive(self.cluster)
            return None
        except errors.TaskLost as e:
            lost = failures.unavailable(e)
        finally:
            self._lock.acquire()
        self._fail(self._round, lost)
        return lost


def _cancelled() -> tf.errors.CancelledError:
    return tf.errors.CancelledError(
        None, None, "the function did not run, because another failed; schedule it again"
    )
