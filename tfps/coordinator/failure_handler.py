"""Lost workers while nobody waits, as `coordinator._cluster.failure_handler`.

Programs use it to run something on a worker of their choice, by `wait_on_failure`.
"""

import contextlib
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures, reconnecting
from tfps.cluster.members import Members, Task
from tfps.coordinator import recovery
from tfps.coordinator.faults import Faults, Repeats
from tfps.coordinator.recovery import Recovery

# s between two looks for lost tasks.
_LOOK = 1.0

# s for which the thread's end waits for tasks that are being taken in.
_LAST = 5.0


class Queue(Protocol):
    """What the handler needs of the `WorkQueue`.

    Attributes:
      used: whether a closure was ever put there.
    """

    used: bool

    @property
    def manager(self) -> _tf.CancellationManager:
        """Returns what cancels the closures that are scheduled now."""


class FailureHandler:
    """Waits for lost workers in place of whoever runs calls on them.

    Its thread begins the recovery of tasks that are lost while nobody waits for functions. A
    coordinator that was never used takes nobody in, since a `Trainer` does that for itself.
    """

    def __init__(self, queue: Queue, members: Members, faults: Faults, recovery: Recovery):
        """Has no thread yet.

        Args:
          queue: the coordinator's queue, which is not kept alive.
          members: the cluster's members.
          faults: judges errors.
          recovery: takes lost tasks in again.
        """
        self._queue = weakref.ref(queue)
        self._members = members
        self._faults = faults
        self._recovery = recovery
        self._is_started = self._is_stopped = False
        # The garbage collector, which stops the handler with the coordinator, may run in the
        # handler's own thread, and while that holds the lock.
        self._changed = threading.Condition(threading.RLock())
        self._preemption_handler_thread = threading.Thread(
            target=self._run, name="WorkerPreemptionHandler", daemon=True
        )

    def start(self) -> None:
        """Starts the thread, if it was not started before."""
        with self._changed:
            begins = not self._is_started and not self._is_stopped
            self._is_started = True
        if begins:
            self._preemption_handler_thread.start()

    def stop(self) -> None:
        """Ends the thread within a second, or when the tasks that now join have joined.

        Whoever waits for functions goes on to recover tasks. Who has waited for the thread's end
        can connect to another cluster.
        """
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _run(self) -> None:
        self._look_after()
        reconnecting.await_change(_LAST)

    def _look_after(self) -> None:
        while True:
            with self._changed:
                if not self._is_stopped:
                    self._changed.wait(_LOOK)
                if self._is_stopped:
                    return
            queue = self._queue()
            if queue is None:
                return
            if queue.used and self._members.lost() and self._recovery.error is None:
                self._recovery.begin()
            del queue

    @contextlib.contextmanager
    def wait_on_failure(
        self,
        on_failure_fn: Callable[[BaseException], object] | None = None,
        on_transient_failure_fn: Callable[[], object] | None = None,
        on_recovery_fn: Callable[[], object] | None = None,
        worker_device_name: str = "(unknown)",
    ) -> Iterator[None]:
        """Returns a context that, when its block has lost the worker, waits until that is back.

        Args:
          on_failure_fn: called with the error when the worker is lost.
          on_transient_failure_fn: called after a fault that has passed, with no worker lost.
          on_recovery_fn: called when the worker is back; it is called again if it loses the worker
            as well.
          worker_device_name: the worker's device, such as `/job:worker/task:1`, or `worker 1`. For
            any other name, the first worker that is lost is taken for it.

        Raises:
          WorkerError: the error is that of the call itself; an instance of TensorFlow's class too.
          TaskLost: a ps is lost, or the worker does not come back.
        """
        repeats = Repeats()
        try:
            yield
            return
        except Exception as e:
            task = self._lost(e, worker_device_name, repeats)
            if task is not None and on_failure_fn is not None:
                on_failure_fn(e)
        while task is not None:
            self._wait_back(task)
            if on_recovery_fn is None:
                return
            try:
                on_recovery_fn()
                return
            except Exception as e:
                task = self._lost(e, worker_device_name, repeats)
        if on_transient_failure_fn is not None:
            on_transient_failure_fn()

    def _lost(self, error: Exception, name: str, repeats: Repeats) -> Task | None:
        """Returns the worker that a call has lost; None after a fault that has passed.

        Raises:
          Exception: the error as the chief's code should see it, if the call is not to be repeated.
        """
        queue, worker = self._queue(), self._index(name)
        cancelled = isinstance(error, tf.errors.CancelledError)
        if queue is None or worker is None or (cancelled and queue.manager.is_cancelled):
            raise error
        losses = repeats.losses
        judged = self._faults.judged(worker, error, repeats)
        self._recovery.begin()
        if judged is not None:
            raise judged
        return Task("worker", worker) if repeats.losses > losses else None

    def _index(self, name: str) -> int | None:
        if found := re.search(r"(?:/task:|worker )(\d+)", name):
            return int(found[1])
        self._members.suspect()
        lost = self._members.settle()
        return next((task.index for task in sorted(lost) if task.job == "worker"), None)

    def _wait_back(self, task: Task) -> None:
        deadline = time.monotonic() + recovery.LIMIT
        while not self._members.wait_back(task, _LOOK):
            if self._recovery.error is not None:
                raise self._recovery.error
            if gone := self._faults.lost_ps(self._members.lost()):
                raise failures.unavailable(gone)
            if time.monotonic() > deadline:
                address, limit = self._members.address(task), recovery.LIMIT
                said = f"{task} ({address}) has not come back within {limit:g} s"
                raise failures.unavailable(
                    errors.TaskLost(f"{said}; start it again at its address")
                )
