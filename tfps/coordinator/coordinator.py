"""`tf.distribute.coordinator.ClusterCoordinator`, at a fraction of its cost."""

from typing import Any

import tensorflow as tf

from tfps import errors
from tfps.cluster.spec import Cluster
from tfps.coordinator import as_tensorflow
from tfps.coordinator.closures import (
    Closure,
    ResourceClosure,
    Traces,
    concrete,
    reject_remote_values,
)
from tfps.coordinator.remote_value import RemoteValue, Resource
from tfps.coordinator.resources import Resources
from tfps.coordinator.work_queue import WorkQueue

# The servers' thread pools (`server.inter_op_threads`) are sized with this in mind.
_MAX_IN_FLIGHT = 4


class ClusterCoordinator(tf.distribute.coordinator.ClusterCoordinator):
    """Runs `tf.function`s on the workers of a parameter-server strategy.

    It is a drop-in for `tf.distribute.coordinator.ClusterCoordinator`, and an instance of it. There
    is one coordinator for each strategy. A `tfps.ParameterServerStrategy` comes with its
    coordinator, which TensorFlow's class returns as well.

    A function whose worker is lost is run again, on another worker or on the same one when it has
    come back, and its updates may then have been made already: a function runs at least once. A
    worker that starts again at its address is used again, and its per-worker values are made anew.
    With a parameter server, its variables are lost, and the functions that run fail; the server
    can be used for new variables once it has started again.

    The results that somebody holds are on the chief when `join` returns, or `done` says True. One
    that is lost with its worker before is computed again, as if its function had not ended.

    It differs from TensorFlow's in these points: a function is traced and its inputs are laid out
    once, results stay on the workers until somebody waits for them, errors name the worker and its
    address, a frozen task or vanished host is lost after seconds, while others go on, and there is
    no number of faults after which the coordinator gives up.
    """

    def __new__(
        cls, strategy: tf.distribute.Strategy, in_flight: int | None = None
    ) -> "ClusterCoordinator":
        if not hasattr(strategy, "_is_parameter_server_strategy_v2"):
            raise errors.ConfigError(
                f"the strategy is a {type(strategy).__name__}; a ClusterCoordinator works with a "
                "tfps.ParameterServerStrategy"
            )
        made = super().__new__(cls, strategy)
        if not isinstance(made, cls):
            raise errors.ConfigError(
                "the strategy has TensorFlow's ClusterCoordinator already, and a strategy has one; "
                "use a tfps.ParameterServerStrategy, or make this one before entering its scope"
            )
        return made

    def __init__(self, strategy: tf.distribute.Strategy, in_flight: int | None = None):
        """Makes the strategy's coordinator, or finds it.

        Args:
          strategy: a `tfps.ParameterServerStrategy`, or TensorFlow's.
          in_flight: number of functions, 1 to 4, that run on a worker at the same time, so that a
            function can wait for the network while another computes. None leaves the number as
            it is, which is 1 at first. With more than 1, scheduled functions must not depend on a
            worker running one function at a time.

        Raises:
          ConfigError: the strategy is of another kind, or `in_flight` is out of range.
        """
        if in_flight is not None and not 1 <= in_flight <= _MAX_IN_FLIGHT:
            raise errors.ConfigError(
                f"in_flight={in_flight}; a worker can run 1 to {_MAX_IN_FLIGHT} functions at once"
            )
        self._prepare(strategy)
        if in_flight is not None:
            self._queue.resize(in_flight)
        self._queue.start()

    @classmethod
    def come_with(cls, strategy: tf.distribute.Strategy) -> None:
        """Gives a strategy its coordinator, which has no thread until somebody asks for it."""
        cls.__new__(cls, strategy)._prepare(strategy)

    def _prepare(self, strategy: tf.distribute.Strategy) -> None:
        if getattr(self, "_has_initialized", False):
            return
        # TensorFlow's own constructor would start its threads.
        self._strategy = strategy
        strategy.extended._used_with_coordinator = True
        cluster = getattr(strategy, "cluster", None)
        cluster = cluster or Cluster.from_resolver(strategy._cluster_resolver)
        # For each worker, the per-worker values on it, in the order in which they were made.
        self._resources = Resources(cluster.num_workers)
        self._queue = WorkQueue(cluster, self._resources)
        self._traces = Traces(strategy)
        # The specs are not in the work queue. They know their strategy, and the lanes, which
        # know the queue, end when nobody knows the strategy any more.
        self._specs: dict = {}
        self._cluster = as_tensorflow.Cluster(self._queue, self.schedule, self._resources)
        self._has_initialized = True

    def __del__(self):
        if getattr(self, "_has_initialized", False):
            self._queue.stop()

    @property
    def in_flight(self) -> int:
        """Number of functions that run on a worker at the same time, at most."""
        return self._queue.lanes_per_worker

    def schedule(
        self, fn: Any, args: tuple | None = None, kwargs: dict[str, Any] | None = None
    ) -> RemoteValue:
        """Queues a function to be run on some worker, and returns at once.

        Args:
          fn: a `tf.function` or a concrete function. A `tf.function` is traced when it is first
            scheduled with arguments of such types and shapes.
          args: its positional arguments. A per-worker value, such as an iterator of
            `create_per_worker_dataset`, stands for the worker's own value.
          kwargs: its keyword arguments; per-worker values stand for the same.

        Returns:
          A `RemoteValue` for what the function returns.

        Raises:
          TypeError: `fn` is not a `tf.function`.
          ValueError: a `RemoteValue` is among the arguments.
          Exception: the error of a function scheduled before.
        """
        if not isinstance(
            fn,
            (
                tf.types.experimental.PolymorphicFunction,
                tf.types.experimental.ConcreteFunction,
            ),
        ):
            raise TypeError(
                "`tf.distribute.experimental.coordinator.ClusterCoordinator.schedule` only accepts "
                f"a `tf.function` or a concrete function. It was given {fn!r}; make that a "
                "tf.function"
            )
        args, kwargs = args or (), kwargs or {}
        trace, leaves = self._traces.find(fn, args, kwargs)
        value = RemoteValue(self._queue, trace.flat)
        self._queue.start_lanes()
        self._queue.put(Closure(trace, args, kwargs, leaves, value))
        return value

    def join(self) -> None:
        """Waits until all scheduled functions have ended, and their results are on the chief.

        A result is copied if somebody holds its `RemoteValue`; nobody pays for any other.

        Raises:
          WorkerError: a function failed on a worker. The error is an instance of TensorFlow's class
            too, for instance `tf.errors.InvalidArgumentError`. Functions that had not run are
            cancelled. The error is raised once; afterwards the coordinator can be used again.
          TaskLost: a ps is lost, or all workers were lost for an hour. The error is also a
            `tf.errors.UnavailableError`.
        """
        self._queue.join()

    def done(self) -> bool:
        """Returns whether all scheduled functions have ended; copies results and raises as `join`.

        It copies results only if all functions have ended, and waits for these copies.
        """
        return self._queue.done()

    def fetch(self, val: Any) -> Any:
        """Waits for remote values and returns their results, with NumPy arrays for tensors.

        Many small results cost less in one call than one by one.

        Args:
          val: a structure. What is no `RemoteValue` in it stays as it is.

        Raises:
          Exception: the error of a function; see `RemoteValue.get`.
        """
        remote = {
            id(x): x
            for x in tf.nest.flatten(val)
            if isinstance(x, RemoteValue) and not isinstance(x, Resource)
        }
        if len(remote) > 1:
            self._bring(list(remote.values()))
        return super().fetch(val)

    def _bring(self, values: list[RemoteValue]) -> None:
        for value in values:
            # Whoever gets a failed value first need not wait for the values that come after it.
            if value._get_error() is not None:
                return
        self._queue.bring(values)

    def _create_per_worker_resources(self, fn, args=None, kwargs=None):
        """Calls `fn` on each worker and returns the results as a per-worker value."""
        args, kwargs = args or (), kwargs or {}
        reject_remote_values((args, kwargs))
        spec = None
        if isinstance(fn, tf.types.experimental.PolymorphicFunction):
            fn = concrete(fn, self._strategy, args, kwargs)
        if isinstance(fn, tf.types.experimental.ConcreteFunction):
            spec = tf.nest.map_structure(_spec_of, fn.structured_outputs)
        self._queue.start_lanes()
        values = []
        for worker in range(self._queue.cluster.num_workers):
            value = Resource(self._queue, self._specs)
            value._type_spec = spec
            value.closure = ResourceClosure(fn, args, kwargs, value)
            self._queue.make(worker, value)
            values.append(value)
        return tf.distribute.coordinator.PerWorkerValue(tuple(values))

    _create_per_worker_variables = _create_per_worker_resources


def _spec_of(output: Any) -> tf.TypeSpec | None:
    return None if output is None else tf.type_spec_from_value(output)
