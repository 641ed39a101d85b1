"""A call that waits for a worker: which graph, with which tensors."""

import copy
import functools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfps import _tf, _tf_functions
from tfps.cluster import failures
from tfps.cluster.byte_row import ByteRow
from tfps.cluster.lanes import Lane, Source
from tfps.coordinator import result_buffer
from tfps.coordinator.faults import Repeats
from tfps.coordinator.remote_value import RemoteValue, Resource

_PER_WORKER = tf.distribute.coordinator.PerWorkerValue
_REMOTE = tf.distribute.coordinator.RemoteValue
_LITERALS = (bool, int, float, str, bytes, type(None))


# Signatures that are remembered of a function. If it is scheduled with ever new Python numbers,
# for which TensorFlow has one graph, each of them is a signature.
_SIGNATURES = 1000


class _Unknown(Exception):
    """An argument has a type whose signature only TensorFlow can tell."""


def signature(x: Any, leaves: list) -> Any:
    """Returns what a trace depends on: it is equal only for arguments that one graph serves.

    It takes microseconds, where TensorFlow's own takes a hundred. It is finer than TensorFlow's:
    some arguments that share a graph have different signatures.

    Args:
      x: arguments, nested in lists, tuples and dicts.
      leaves: receives the tensors and per-worker values, in order.

    Raises:
      _Unknown: an argument has another type.
    """
    kind = type(x)
    if kind is tuple or kind is list:
        return (kind, *[signature(y, leaves) for y in x])
    if kind is dict:
        return (kind, *x, *[signature(y, leaves) for y in x.values()])
    if kind in _LITERALS:
        return (kind, x)
    if kind is _tf.EagerTensor and x.dtype not in (tf.resource, tf.variant):
        leaves.append(x)
        return (x.dtype, *x.shape)
    if isinstance(x, _PER_WORKER):
        leaves.append(x)
        # Specs are interned, since comparing two of them takes longer than the rest of this.
        return (_PER_WORKER, id(_tf_functions.per_worker_spec(x)))
    if kind is np.ndarray:
        leaves.append(x)
        return (kind, x.dtype, *x.shape)
    raise _Unknown


def reject_remote_values(structure: Any) -> None:
    """Raises `ValueError` if a result of one scheduled function is an argument of another."""
    if any(isinstance(x, _REMOTE) for x in tf.nest.flatten(structure)):
        raise ValueError(
            "`tf.distribute.experimental.coordinator.RemoteValue` used as an input to scheduled "
            "function is not yet supported; it lives on the worker that computed it: schedule with "
            ".get() of it, or do both computations in one function"
        )


def on_worker(structure: Any, worker: int) -> Any:
    """Returns arguments in which each per-worker value is replaced by the worker's own value."""

    def own(x: Any) -> Any:
        if not isinstance(x, _PER_WORKER):
            return x
        return _usable(_tf_functions.by_worker(x)[worker]).value()

    return tf.nest.map_structure(own, structure)


def _usable(resource: Resource) -> Resource:
    """Waits for a worker's own value, an argument; raises if it could not be made."""
    if (error := resource.error()) is not None:
        raise failures.of_input(error)
    return resource


class ClosureLane(Lane):
    """A lane that runs closures.

    Attributes:
      results: the buffers for small results that this lane has computed.
      life: the life of its worker in which the buffers were made.
    """

    thread_name = "WorkerClosureProcessingLoop"  # TensorFlow's name, by which programs find them.

    def __init__(self, worker: int, source: Source, index: int):
        """Describes the lane; see `Lane`."""
        super().__init__(worker, source, index)
        self.renew(0)

    def renew(self, life: int) -> None:
        """Forgets the buffers: the worker's memory is empty in its new life."""
        self.life = life
        self.results = result_buffer.Results(f"{self.device}/device:CPU:0")


class Trace:
    """A graph for arguments of one signature, and how its inputs are got from the arguments.

    Attributes:
      flat: the graph, called with flat tensors; None if TensorFlow has to call it.
    """

    def __init__(self, function: tf.types.experimental.ConcreteFunction, signature: tuple):
        """Prepares the calls of a graph.

        Args:
          function: the graph.
          signature: how the `tf.function` that it is of binds arguments; see
            `_tf_functions.signature_of`.
        """
        self._function = function
        self.flat: _tf_functions.FlatFunction | None = None
        self._packing: ByteRow | None = None  # The layout of results that go to a buffer.
        if function.function_type is not None and _tf_functions.nothing_recorded(function):
            store: Callable | None = None
            place: tuple[tf.TensorSpec, ...] = ()
            if ByteRow.fits(function.outputs):
                self._packing = ByteRow(function.outputs)
                store, place = (
                    functools.partial(result_buffer.store, self._packing),
                    result_buffer.PLACE,
                )
            elif _tf_functions.compiled(function):
                # TensorFlow cannot call it on a worker, but can call a graph that calls it.
                store = list
            self.flat = _tf_functions.FlatFunction(function, signature, store, place)
        # Whether the leaves of arguments are the inputs as they come; None if that is not known.
        self._direct: bool | None = None

    def for_another_signature(self) -> "Trace":
        """Returns a trace of the same graph: what is stateful in the graph is there once."""
        other = copy.copy(self)
        other._direct = None
        return other

    def run(self, closure: "Closure", lane: ClosureLane, manager: _tf.CancellationManager) -> Any:
        """Calls the graph on the device in scope.

        Returns:
          Flat outputs, or a row that holds them, if there is `flat`; otherwise the structure.
        """
        if self._direct and self.flat is not None and closure.leaves is not None:
            return self._call(self.flat, _tensors(closure.leaves, lane.worker), lane, manager)
        args, kwargs = on_worker((closure.args, closure.kwargs), lane.worker)
        if self.flat is None:
            return self._function(*args, **kwargs)
        inputs = self.flat.bound(args, kwargs)
        if self._direct is None and closure.leaves is not None:
            self._compare(inputs, _tensors(closure.leaves, lane.worker))
        return self._call(self.flat, inputs, lane, manager)

    def _call(
        self,
        flat: _tf_functions.FlatFunction,
        inputs: list,
        lane: ClosureLane,
        manager: _tf.CancellationManager,
    ) -> list[tf.Tensor] | result_buffer.Row:
        if self._packing is None:
            return flat(inputs, manager)
        row = lane.results.row(self._packing)
        try:
            flat(inputs, manager, row.place())
        except BaseException:
            lane.results.abandon(self._packing)
            del row  # The error's frames know the row, and would keep its buffer.
            raise
        row.written = True
        return row

    def _compare(self, inputs: list, tensors: list) -> None:
        """Decides whether the leaves, as they come, are the inputs.

        Defaults, conversions and the order of keywords can make a difference, but it is the same
        for all arguments of this signature.
        """
        distinct = len({id(t) for t in tensors}) == len(tensors)
        same = len(inputs) == len(tensors) and all(
            a is b for a, b in zip(inputs, tensors, strict=True)
        )
        if distinct or not same:
            self._direct = same


def _tensors(leaves: list, worker: int) -> list:
    tensors = []
    for leaf in leaves:
        if isinstance(leaf, _PER_WORKER):
            tensors += _usable(_tf_functions.by_worker(leaf)[worker]).components()
        else:
            tensors.append(leaf)
    return tensors


class Traces:
    """The graphs of the functions that a coordinator has scheduled, traced once each."""

    def __init__(self, strategy: tf.distribute.Strategy):
        """Knows no graph yet; functions are traced for this strategy."""
        self._strategy = strategy
        self._lock = threading.RLock()  # Tracing may schedule.

    def find(self, function: Any, args: tuple, kwargs: dict) -> tuple[Trace, list | None]:
        """Finds the graph for arguments, and traces it if there is none.

        Returns:
          (the graph, the arguments' tensors and per-worker values). The latter are None where only
          TensorFlow can tell which they are.
        """
        known = self._known(function)
        leaves: list = []
        try:
            key = (_tf.device_in_scope(), signature(args, leaves), signature(kwargs, leaves))
        except _Unknown:
            reject_remote_values((args, kwargs))
            graph = self._concrete(function, args, kwargs)
            return self._of_graph(known, graph, function), None
        trace = known.get(key)
        if trace is not None:
            return trace, leaves
        with self._lock:
            graph = self._concrete(function, args, kwargs)
            trace = self._of_graph(known, graph, function)
            if len(known) >= _SIGNATURES:
                return trace, None
            known[key] = trace.for_another_signature()
        return known[key], leaves

    def _of_graph(self, known: dict, graph: Any, function: Any) -> Trace:
        with self._lock:
            if graph not in known:
                known[graph] = Trace(graph, _tf_functions.signature_of(function))
            return known[graph]

    def _known(self, function: Any) -> dict:
        """Returns the function's traces. They are gone when the function or the coordinator is."""
        kept = function.__dict__.get("_tfps_traces")
        if kept is None:
            kept = function._tfps_traces = weakref.WeakKeyDictionary()
        return kept.setdefault(self, {})

    def _concrete(
        self, function: Any, args: tuple, kwargs: dict
    ) -> tf.types.experimental.ConcreteFunction:
        if isinstance(function, tf.types.experimental.ConcreteFunction):
            return function
        return concrete(function, self._strategy, args, kwargs)


def concrete(
    function: tf.types.experimental.PolymorphicFunction,
    strategy: tf.distribute.Strategy,
    args: tuple,
    kwargs: dict,
) -> tf.types.experimental.ConcreteFunction:
    """Traces a `tf.function`. A per-worker value stands for what it is on a worker."""
    args, kwargs = tf.nest.map_structure(_as_spec, (args, kwargs))
    count = functools.partial(_tf.tracing_count, function)
    with _tf_functions.being_scheduled(strategy), _tf.timed("function_tracing", count):
        return function.get_concrete_function(*args, **kwargs)


def _as_spec(x: Any) -> Any:
    if not isinstance(x, _PER_WORKER):
        return x
    spec = _tf_functions.per_worker_spec(x)
    if spec is None:
        raise ValueError(
            "Output of a scheduled function that is not tf.function cannot be the input of another "
            "function; make the per-worker value with a tf.function, or with "
            "create_per_worker_dataset"
        )
    return spec


class Round:
    """The time between two errors: a new round begins when an error has been raised.

    Attributes:
      inflight: number of closures that run.
      error: the first error, which has not been raised yet.
      manager: cancels what runs.
      begun: time (`time.monotonic`, in s) at which it began.
    """

    __slots__ = ("begun", "error", "inflight", "manager")

    def __init__(self) -> None:
        """Begins a round in which nothing runs yet."""
        self.inflight = 0
        self.error: BaseException | None = None
        self.manager = _tf.CancellationManager()
        self.begun = time.monotonic()


class Closure:
    """A scheduled call. Its result is not kept if nobody holds the remote value.

    Attributes:
      output: weak reference to the `RemoteValue` for the result.
      round: the round in which it runs, once a lane has taken it.
      repeats: how often it was run again.
      worker: None, since any worker may run it.
    """

    __slots__ = ("args", "kwargs", "leaves", "output", "repeats", "round", "trace", "worker")

    def __init__(
        self, trace: Trace, args: tuple, kwargs: dict, leaves: list | None, output: RemoteValue
    ):
        """Describes the call.

        Args:
          trace: the graph for the arguments.
          args: positional arguments.
          kwargs: keyword arguments.
          leaves: the arguments' tensors and per-worker values; None where only TensorFlow can
            tell which they are.
          output: receives the result.
        """
        self.trace = trace
        self.args = args
        self.kwargs = kwargs
        self.leaves = leaves
        self.output = weakref.ref(output)
        self.round: Round | None = None
        self.repeats = Repeats()
        self.worker: int | None = None

    def run(self, lane: ClosureLane) -> Any:
        """Calls the graph; returns what `Trace.run` does."""
        assert self.round is not None  # The lane has taken it.
        with _tf.timed("closure_execution"):
            result = self.trace.run(self, lane, self.round.manager)
        # TensorFlow copies each result to the chief now, whether or not anybody wants it, and
        # programs rely on the number. Here the copy waits for `join`, or somebody who asks.
        with _tf.timed("remote_value_fetch"):
            return result


class ResourceClosure:
    """A call that makes something on one particular worker.

    Attributes:
      output: weak reference to the `Resource` for what is made.
      round: none, since nobody joins the call and nobody cancels it.
      repeats: how often it was run again.
      worker: index of the worker.
    """

    __slots__ = ("args", "function", "kwargs", "output", "repeats", "worker")
    round: Round | None = None

    def __init__(self, function: Callable[..., Any], args: tuple, kwargs: dict, output: Resource):
        """Describes the call of `function(*args, **kwargs)`, whose result `output` receives."""
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.output = weakref.ref(output)
        self.repeats = Repeats()
        self.worker: int | None = None

    def run(self, lane: ClosureLane) -> Any:
        """Calls the function; returns what it returns."""
        args, kwargs = on_worker((self.args, self.kwargs), lane.worker)
        return self.function(*args, **kwargs)
