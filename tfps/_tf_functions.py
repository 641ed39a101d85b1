"""Functions that take a flat list of tensors: private names of TensorFlow 2.21."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context, execute
from tensorflow.python.eager.polymorphic_function import (
    atomic_function,
    function_type_utils,
)

from tfps import _tf, _tf_busy, _tf_copies


def on_chief(value: Any, dtype: tf.DType) -> tf.Tensor:
    """Makes a tensor in this process, whatever device is in scope.

    To enter `tf.device` would take longer than to make the tensor.

    Args:
      value: a number, or an array that must not change afterwards.
      dtype: the tensor's dtype.
    """
    return _tf.EagerTensor(value, None, dtype.as_datatype_enum)


def per_worker_spec(value: tf.distribute.coordinator.PerWorkerValue) -> tf.TypeSpec | None:
    """Returns the type that a function sees for a per-worker value, or None if it is not known."""
    return value._values[0]._type_spec


def by_worker(value: tf.distribute.coordinator.PerWorkerValue) -> tuple:
    """Returns the remote values that a per-worker value is made of, by worker."""
    return value._values


def signature_of(function: Any) -> tuple[tf.types.experimental.FunctionType | None, dict]:
    """Returns how a `tf.function` binds Python arguments, and the arguments' default values.

    A concrete function has none of both: the result is (None, {}).
    """
    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return None, {}
    return function.function_type, getattr(function, "_default_values", None) or {}


def nothing_recorded(function: tf.types.experimental.ConcreteFunction) -> bool:
    """Returns whether no output is a handle, which needs bookkeeping that `FlatFunction` omits."""
    outputs = function.function_type.flat_outputs
    return not any(output.dtype in (tf.resource, tf.variant) for output in outputs)


def late_captures(function: Any) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Captures in the present graph what a function captures each time that it is called.

    Returns:
      (placeholder in the function's graph, tensor of the present graph) of each such capture.
    """
    graph = function.graph
    inside = tf.nest.flatten(graph.deferred_internal_captures, expand_composites=True)
    outside = [tensor for capture in graph.deferred_external_captures for tensor in capture()]
    return list(zip(inside, outside, strict=True))


def compiled(function: tf.types.experimental.ConcreteFunction) -> bool:
    """Returns whether XLA compiles the function as a whole, as `jit_compile=True` says."""
    return function.function_def.attr["_XlaMustCompile"].b


@contextlib.contextmanager
def being_scheduled(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Enters the strategy's scope, in which its methods know that the coordinator calls them."""
    with strategy.scope():
        before = strategy.extended._being_scheduled
        strategy.extended._being_scheduled = True
        try:
            yield
        finally:
            strategy.extended._being_scheduled = before


class _Interpolated(atomic_function.InterpolateRuntimeError):
    """Adds to an error of a graph where the user's code made the operation that failed.

    TensorFlow's own adds every frame between the program and the operation, which are dozens of
    lines, of which those of libraries say nothing.
    """

    DENY_LIST_PHRASES = (
        *atomic_function.InterpolateRuntimeError.DENY_LIST_PHRASES,
        *(f"{os.sep}{name}{os.sep}" for name in ("tensorflow", "keras", "tfps")),
        os.path.dirname(os.__file__) + os.sep,
        "<frozen ",
    )

    def interpolate(self, message, node_names, graph_debug_info):
        """See TensorFlow's class."""
        # An error that comes over several servers names the node once for each of them.
        names = list(dict.fromkeys(node_names))
        text = super().interpolate(message, names, graph_debug_info)
        return re.sub(r"\n{2,}(?=  File )", "\n", text)


class FlatFunction:
    """A concrete function that is called with flat tensors and returns flat tensors.

    TensorFlow spends a third of the time of a remote call on binding Python arguments, on recording
    for gradients, and on packing results. A caller of the same function needs that once.
    """

    def __init__(
        self,
        function: tf.types.experimental.ConcreteFunction,
        signature: tuple[tf.types.experimental.FunctionType | None, dict] = (None, {}),
        store: Callable | None = None,
        place: Sequence[tf.TensorSpec] = (),
    ):
        """Prepares the calls of a graph.

        Args:
          function: the graph.
          signature: how the `tf.function` binds arguments from which the graph was traced; see
            `signature_of`.
          store: what is done with the outputs, or None if a call returns them. It is called in
            the graph with the list of flat outputs and with the tensors of a place, and a call
            returns what it returns.
          place: specs of the tensors of a place.
        """
        self._function = function
        self._signature, self._defaults = signature
        self._inner = function._inference_function
        self._called = function if store is None else self._storing(store, place)
        self._graph = self._called._inference_function
        self._name = self._graph.name.decode()
        self._outputs = len(self._graph.function_type.flat_outputs)
        attrs = context.context().function_call_options.as_attrs()
        self._attrs = tuple(part for item in attrs.items() for part in item)
        self._captures = self._captured_here = None
        if not any(callable(c) for c in function._captured_inputs):
            self._captures = function.captured_inputs
            # It knows nothing of this object, which would otherwise be freed only by the collector.
            self._captured_here = _tf_copies.Residents(
                functools.partial(_tf_copies.on_task, self._captures, _no_handles(self._captures))
            )
        self._copied = _no_handles(self._called.inputs)

    def bound(self, args: tuple, kwargs: dict) -> list[tf.Tensor]:
        """Returns the tensors of Python arguments, in the order of the function's inputs."""
        kind = self._function.function_type
        signature = self._signature or kind
        try:
            return kind.unpack_inputs(
                function_type_utils.bind_function_inputs(args, kwargs, signature, self._defaults)
            )
        except TypeError:
            # A concrete function may also be called with nothing but its tensors.
            flat = kind.flat_inputs
            if kwargs or len(args) != len(flat):
                raise
            return [tf.convert_to_tensor(x, i.dtype) for x, i in zip(args, flat, strict=True)]

    def _storing(
        self, store: Callable, place: Sequence[tf.TensorSpec]
    ) -> tf.types.experimental.ConcreteFunction:
        """Traces a graph that calls the function, and has the inputs of a place besides."""
        inputs = [tf.TensorSpec(x.shape, x.dtype) for x in self._function.inputs]

        inner = self._inner

        def call(*tensors):
            outputs = inner.call_flat(*tensors[: len(inputs)])
            return store(outputs, *tensors[len(inputs) :])

        call.__name__ = self._function.graph.name  # TensorFlow's errors name it.
        function = tf.function(call, autograph=False)
        # The device in scope is one worker's; the graph is for all.
        with tf.device(None):
            return function.get_concrete_function(*inputs, *place)

    def __call__(
        self,
        inputs: list[tf.Tensor],
        manager: _tf.CancellationManager | None = None,
        place: Sequence[tf.Tensor] = (),
    ) -> list[tf.Tensor]:
        """Runs the graph on the device in scope, until it ends or `manager` cancels it.

        Args:
          inputs: tensors as `bound` gives them.
          manager: what can cancel the call, or None if nothing can.
          place: the tensors that tell `store` where to put the outputs.

        Returns:
          The flat outputs, or what `store` returns.
        """
        given = self._given(inputs, place)
        _tf_busy.note(self._function)
        with _Interpolated(self._graph):
            if manager is None:
                return execute.execute(
                    self._name, self._outputs, given, self._attrs, context.context()
                )
            return execute.execute_with_cancellation(
                self._name, self._outputs, given, self._attrs, context.context(), manager
            )

    def _given(self, inputs: list[tf.Tensor], place: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The graph's inputs; on another task than this process, all are tensors of that task."""
        task = _tf_copies.task_in_scope()
        # Some captures are chosen by worker: a table, or the worker's index.
        captures = self._captures
        if captures is None:
            captures = self._function.captured_inputs
        elif task is not None and self._captured_here is not None:
            captures = self._captured_here.on(task)
        given = [*inputs, *captures, *place]
        return given if task is None else _tf_copies.on_task(given, self._copied, task)

    def packed(self, outputs: list[tf.Tensor] | None) -> Any:
        """Returns flat outputs in the structure that the Python function returned."""
        return self._inner.function_type.pack_output(outputs)


def _no_handles(tensors: Sequence[tf.Tensor]) -> list[int]:
    """The indices of tensors that are no handles of resources, which are given as they are."""
    return [i for i, x in enumerate(tensors) if x.dtype != tf.resource]
