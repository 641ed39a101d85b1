"""The parts of TensorFlow's coordinator that programs reach for behind its underscore.

`coordinator._cluster` is no public name, but it is the only way to say which worker runs a
function, or to look at the graph of a function before it runs.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster.devices import worker_device
from tfps.coordinator.closures import ClosureLane, Round
from tfps.coordinator.failure_handler import FailureHandler
from tfps.coordinator.faults import Repeats
from tfps.coordinator.remote_value import RemoteValue, Resource
from tfps.coordinator.work_queue import WorkQueue


class Worker:
    """A worker, as an element of `coordinator._cluster.workers`.

    Attributes:
      worker_index: its index.
      device_name: TensorFlow's name of its device.
      failure_handler: that of the `Cluster`.
    """

    def __init__(self, index: int, resources: Iterable[Resource], handler: FailureHandler):
        """Describes worker `index`; `resources` are the per-worker values on it."""
        self.worker_index = index
        self.device_name = worker_device(index)
        self.failure_handler = handler
        self._resources = resources

    @functools.cached_property
    def executor(self) -> Any:
        """An executor for whoever runs closures of TensorFlow's class on this worker."""
        return _tf.new_executor()

    @property
    def _resource_remote_value_refs(self) -> list[weakref.ref]:
        return [weakref.ref(r) for r in self._resources]


class ClosureQueue:
    """The queue of closures, as `coordinator._cluster.closure_queue`."""

    def __init__(self, queue: WorkQueue):
        """Puts closures into `queue`."""
        self._queue = queue

    def put(self, closure: Any, tag: int | None = None) -> None:
        """Queues a closure of TensorFlow's class.

        Args:
          closure: a `cluster_coordinator.Closure`.
          tag: index of the worker that has to run it, or None if any may.
        """
        self._queue.start_lanes()
        if tag is None:
            self._queue.put(TensorFlowClosure(closure))
        else:
            self._queue.put_on(tag, TensorFlowClosure(closure), joined=True)

    def wait(self) -> None:
        """Waits for all closures; see `ClusterCoordinator.join`."""
        self._queue.join()

    def done(self) -> bool:
        """Returns whether all closures have ended."""
        return self._queue.done()

    @property
    def _error(self) -> BaseException | None:
        return self._queue.error

    @property
    def _queue_lock(self) -> threading.RLock:
        return self._queue._lock

    @property
    def inflight_closure_count(self) -> int:
        """Number of closures that run."""
        return self._queue.inflight

    @inflight_closure_count.setter
    def inflight_closure_count(self, value: int) -> None:
        # TensorFlow's queue does not count closures for one worker unless it is told so; this one
        # does.
        del value

    _inflight_closure_count = inflight_closure_count

    @property
    def _cancellation_mgr(self) -> _tf.CancellationManager:
        return self._queue.manager


class Cluster:
    """The workers and the queue, as `coordinator._cluster`.

    Attributes:
      workers: list of `Worker`.
      closure_queue: the `ClosureQueue`.
      failure_handler: the `FailureHandler`.
    """

    def __init__(
        self,
        queue: WorkQueue,
        schedule: Callable[..., RemoteValue],
        resources: Iterable[Iterable[Resource]],
    ):
        """Shows a coordinator's parts.

        Args:
          queue: the coordinator's queue.
          schedule: the coordinator's method, which is not kept alive.
          resources: for each worker, the per-worker values on it.
        """
        self.failure_handler = queue.failure_handler
        self.workers = [Worker(i, own, self.failure_handler) for i, own in enumerate(resources)]
        self.closure_queue = ClosureQueue(queue)
        self._schedule = weakref.WeakMethod(schedule)
        self._queue = queue

    def schedule(self, function: Any, args: tuple | None, kwargs: dict | None) -> RemoteValue:
        """Queues a function; see `ClusterCoordinator.schedule`."""
        if (schedule := self._schedule()) is None:
            raise errors.Error("the coordinator was collected; keep it while functions run")
        return schedule(function, args, kwargs)

    def join(self) -> None:
        """Waits for all closures; see `ClusterCoordinator.join`."""
        self._queue.join()

    def done(self) -> bool:
        """Returns whether all closures have ended; see `ClusterCoordinator.done`."""
        return self._queue.done()

    def stop(self) -> None:
        """Cancels everything and ends the coordinator's threads."""
        self._queue.stop()


class _OnLane(NamedTuple):
    """A worker, as TensorFlow's closures want one."""

    worker_index: int
    device_name: str
    executor: Any


class TensorFlowClosure:
    """A closure of TensorFlow's class in the queue.

    Attributes:
      round: see `Closure`.
      repeats: see `Closure`.
      worker: index of the worker that has to run it; None if any may.
    """

    def __init__(self, closure: Any):
        """Wraps a `cluster_coordinator.Closure`, which gives its result to its own remote value."""
        self._closure = closure
        self.round: Round | None = None
        self.repeats = Repeats()
        self.worker: int | None = None

    def run(self, lane: ClosureLane) -> None:
        """Runs the closure on the lane's worker."""
        self._closure.execute_on(_OnLane(lane.worker, lane.device, _tf.own_executor_in_scope()))
        if isinstance(self._closure, _tf.ResourceClosure):
            return
        # The result is on the chief when somebody has waited, whatever becomes of the worker.
        with tf.device(None), _tf.timed("remote_value_fetch"):
            self._closure.maybe_call_with_output_remote_value(lambda r: r.get())

    def output(self) -> "TensorFlowClosure":
        """Returns what is told of an error."""
        return self

    def _set(
        self, result: Any, error: BaseException | None = None, worker: int | None = None
    ) -> None:
        del result, worker
        if error is not None:
            self._closure.maybe_call_with_output_remote_value(lambda r: r._set_error(error))
