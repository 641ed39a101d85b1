"""A call that waits for a worker: which graph, with which tensors."""

import contextlib
import copy
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps import _tf
from tfps.cluster.byte_row import ByteRow
from tfps.cluster.lanes import Lane, Source
from tfps.coordinator import result_buffer
from tfps.coordinator.remote_value import RemoteValue, Resource

_PER_WORKER = tf.distribute.coordinator.PerWorkerValue
_REMOTE = tf.distribute.coordinator.RemoteValue
_LITERALS = (bool, int, float, str, bytes, type(None))


# A function that is scheduled with ever new Python numbers, which TensorFlow takes as one
# tensor, would otherwise be remembered once for each.
_SIGNATURES = 1000


class _Unknown(Exception):
    """An argument of a kind whose signature only TensorFlow can tell."""


def signature(x: Any, leaves: list) -> Any:
    """What a trace depends on: equal for arguments that one graph serves.

    It says less than TensorFlow's own and takes microseconds instead of a
    hundred: some arguments that could share a graph will look it up twice.

    Args:
      x: arguments, nested in lists, tuples and dicts.
      leaves: receives the tensors and per-worker values, in order.

    Raises:
      _Unknown: it holds something of another kind.
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
        # Specs are interned: their own equality takes longer than the rest of this.
        return (_PER_WORKER, id(_tf.per_worker_spec(x)))
    if kind is np.ndarray:
        leaves.append(x)
        return (kind, x.dtype, *x.shape)
    raise _Unknown


def reject_remote_values(structure: Any) -> None:
    """Raises `ValueError` if a result of one scheduled function is an argument of another."""
    if any(isinstance(x, _REMOTE) for x in tf.nest.flatten(structure)):
        raise ValueError(
            "an argument is a RemoteValue, which lives on the worker that computed it; schedule "
            "with .get() of it, or do both computations in one function"
        )


def on_worker(structure: Any, worker: int) -> Any:
    """The arguments with each per-worker value replaced by that worker's own."""

    def own(x):
        return _tf.by_worker(x)[worker].value() if isinstance(x, _PER_WORKER) else x

    return tf.nest.map_structure(own, structure)


class ClosureLane(Lane):
    """A lane that runs closures.

    Attributes:
      results: the buffers for small results that this lane has computed.
    """

    def __init__(self, worker: int, source: Source, index: int):
        """Describes the lane; see `Lane`."""
        super().__init__(worker, source, index)
        self.results = result_buffer.Results(f"{self.device}/device:CPU:0")

    def scope(self) -> contextlib.AbstractContextManager:
        """Returns TensorFlow's context for functions that ask on which worker they are."""
        return _tf.dispatch_context(_Dispatch(self.worker))


class _Dispatch(NamedTuple):
    """What TensorFlow's per-worker resources ask to know while a function is called."""

    worker_index: int


class Trace:
    """A graph for arguments of one signature, and how to get its inputs from them."""

    def __init__(self, function: tf.types.experimental.ConcreteFunction, signature: tuple):
        self._function = function
        self.flat = self._packing = None
        if function.function_type is not None and _tf.nothing_recorded(function):
            store, place = None, ()
            if ByteRow.fits(function.outputs):
                self._packing = ByteRow(function.outputs)
                store, place = (
                    functools.partial(result_buffer.store, self._packing),
                    result_buffer.PLACE,
                )
            elif _tf.compiled(function):
                store = list  # TensorFlow cannot call it on a worker, but can what calls it.
            self.flat = _tf.FlatFunction(function, signature, store, place)
        self._direct: bool | None = None

    def for_another_signature(self) -> "Trace":
        """One that calls the same graph: what is stateful in it is there once."""
        other = copy.copy(self)
        other._direct = None
        return other

    def run(self, closure: "Closure", lane: ClosureLane, manager: _tf.CancellationManager) -> Any:
        """Calls it on the device in scope; flat outputs if `flat`, else the structure."""
        if self._direct:
            return self._call(_tensors(closure.leaves, lane.worker), lane, manager)
        args, kwargs = on_worker((closure.args, closure.kwargs), lane.worker)
        if self.flat is None:
            return self._function(*args, **kwargs)
        inputs = self.flat.bound(args, kwargs)
        if self._direct is None and closure.leaves is not None:
            self._compare(inputs, _tensors(closure.leaves, lane.worker))
        return self._call(inputs, lane, manager)

    def _call(
        self, inputs: list, lane: ClosureLane, manager
    ) -> list[tf.Tensor] | result_buffer.Row:
        if self._packing is None:
            return self.flat(inputs, manager)
        row = lane.results.row(self._packing)
        try:
            self.flat(inputs, manager, row.place())
        except BaseException:
            lane.results.abandon(self._packing)
            del row  # The error's frames know it, and would keep the buffer.
            raise
        row.written = True
        return row

    def _compare(self, inputs: list, tensors: list) -> None:
        """Decides whether the leaves as they come are the inputs.

        Defaults, conversions and the order of keywords can make a difference,
        but the same one for all arguments of this signature.
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
            tensors += _tf.by_worker(leaf)[worker].components()
        else:
            tensors.append(leaf)
    return tensors


class Traces:
    """The graphs of the functions that a coordinator has scheduled, traced once each."""

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._lock = threading.RLock()  # Tracing may schedule.

    def find(self, function, args: tuple, kwargs: dict) -> tuple[Trace, list | None]:
        """The graph for these arguments, and their tensors and per-worker values.

        The latter are None where only TensorFlow can tell which they are.
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

    def _of_graph(self, known: dict, graph, function) -> Trace:
        with self._lock:
            if graph not in known:
                known[graph] = Trace(graph, _tf.signature_of(function))
            return known[graph]

    def _known(self, function) -> dict:
        """What is known of a function: kept by it, and gone when it or the coordinator is."""
        kept = function.__dict__.get("_tfps_traces")
        if kept is None:
            kept = function._tfps_traces = weakref.WeakKeyDictionary()
        return kept.setdefault(self, {})

    def _concrete(self, function, args, kwargs) -> tf.types.experimental.ConcreteFunction:
        if isinstance(function, tf.types.experimental.ConcreteFunction):
            return function
        return concrete(function, self._strategy, args, kwargs)


def concrete(function, strategy, args: tuple, kwargs: dict):
    """The graph of a `tf.function`, per-worker values standing for what they are on a worker."""
    args, kwargs = tf.nest.map_structure(_as_spec, (args, kwargs))
    with _tf.being_scheduled(strategy):
        return function.get_concrete_function(*args, **kwargs)


def _as_spec(x: Any) -> Any:
    if not isinstance(x, _PER_WORKER):
        return x
    spec = _tf.per_worker_spec(x)
    if spec is None:
        raise ValueError(
            "a per-worker value has no type, since the function that made it is no tf.function; "
            "make it with one, or with create_per_worker_dataset"
        )
    return spec


class Round:
    """The time between two errors: a new round begins when an error has been raised.

    Attributes:
      inflight: number of closures that run.
      error: the first error, which has not been raised yet.
      manager: cancels what runs.
    """

    __slots__ = ("error", "inflight", "manager")

    def __init__(self) -> None:
        self.inflight = 0
        self.error: BaseException | None = None
        self.manager = _tf.CancellationManager()


class Closure:
    """A scheduled call. Its result is not kept if nobody holds the remote value.

    Attributes:
      output: weak reference to the `RemoteValue` for the result.
      round: the round in which it runs, once a lane has taken it.
    """

    __slots__ = ("args", "kwargs", "leaves", "output", "round", "trace")

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

    def run(self, lane: ClosureLane) -> Any:
        """Calls the graph; returns what `Trace.run` does."""
        return self.trace.run(self, lane, self.round.manager)


class ResourceClosure:
    """A call that makes something on one particular worker.

    Attributes:
      output: weak reference to the `Resource` for what is made.
      round: None, since nobody joins the call and nobody cancels it.
    """

    __slots__ = ("args", "function", "kwargs", "output")
    round = None

    def __init__(self, function: Callable[..., Any], args: tuple, kwargs: dict, output: Resource):
        """Describes the call of `function(*args, **kwargs)`, whose result `output` receives."""
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.output = weakref.ref(output)

    def run(self, lane: ClosureLane) -> Any:
        """Calls the function; returns what it returns."""
        args, kwargs = on_worker((self.args, self.kwargs), lane.worker)
        return self.function(*args, **kwargs)
