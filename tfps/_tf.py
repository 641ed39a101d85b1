"""The private names of TensorFlow that tfps uses, as of TensorFlow 2.21.

Nothing else in the package imports from `tensorflow.python`.
"""

import contextlib
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx
from tensorflow.python.data.util import structure
from tensorflow.python.distribute.coordinator import coordinator_context, remote_value
from tensorflow.python.eager import cancellation, context, execute, executor
from tensorflow.python.eager.polymorphic_function import (
    atomic_function,
    function_type_utils,
    polymorphic_function,
)
from tensorflow.python.framework import none_tensor, ops

# The type of a tensor outside of graphs. To make a tensor and ask for its type would settle
# TensorFlow's threads and devices as soon as tfps is imported.
EagerTensor = ops.EagerTensor

# What a dataset's spec has where its elements have None.
NoneTensorSpec = none_tensor.NoneTensorSpec

_VARIABLE_CREATION = ("tensorflow.", "tfps.")


def created_by_keras3() -> bool:
    """Returns whether the variable that is being created under a strategy is a Keras 3 variable.

    A variable creator sees only the arguments, which are the same for `tf.Variable` and for Keras
    3. The stack shows who asked: the first frame that is neither TensorFlow's nor ours.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_VARIABLE_CREATION):
            return module == "keras.src.backend.tensorflow.core"
        frame = frame.f_back
    return False


def num_ps_in_scope() -> int:
    """Returns how many parameter servers the strategy in scope has; 0 outside of such a scope."""
    return getattr(tf.distribute.get_strategy().extended, "_num_ps", 0)


RemoteValueStatus = remote_value.RemoteValueStatus
dispatch_context = coordinator_context.with_dispatch_context
CancellationManager: TypeAlias = cancellation.CancellationManager


@contextlib.contextmanager
def own_executor() -> Iterator[executor.Executor]:
    """Gives the operations of this thread an executor of their own.

    An executor keeps the error of its last operation until `clear_error`, and fails until then.
    """
    own = executor.new_executor(enable_async=False)
    with context.executor_scope(own):
        try:
            yield own
        finally:
            own.clear_error()


def independent(op: tf.Operation) -> None:
    """Lets a stateful operation of the function that is being traced run when its inputs are there.

    Otherwise TensorFlow runs stateful operations that touch no resource in the order in which they
    were traced, wherever they are placed.
    """
    ops.get_default_graph().experimental_acd_manager.run_independently(op)


# Held while classes of TensorFlow or Keras are changed for the trace of one thread.
patching = threading.RLock()


@contextlib.contextmanager
def tapes_watch(watched: Sequence[tuple[Any, tf.Tensor]]) -> Iterator[list[Any]]:
    """Lets tensors be to the `tf.GradientTape`s of this thread what trainable variables are.

    Each tape watches them from its beginning, as it watches each trainable variable that is read,
    unless the tape was made with `watch_accessed_variables=False`.

    Args:
      watched: pairs of a variable and the tensor that stands for it.

    Yields:
      The gradients that the tapes have returned so far, each of a single tensor.
    """
    thread, tape_class, returned = threading.get_ident(), tf.GradientTape, []
    push, variables = tape_class._push_tape, tape_class.watched_variables
    gradient = tape_class.gradient

    def push_and_watch(tape):
        begins = tape._tape is None
        push(tape)
        if begins and tape._watch_accessed_variables and threading.get_ident() == thread:
            tape.watch([tensor for _, tensor in watched])

    def watched_variables(tape):
        if threading.get_ident() != thread:
            return variables(tape)
        # Which tensors were read, the graph knows; tensors outside of graphs do not.
        return tuple(v for v, t in watched if tf.executing_eagerly() or t.consumers())

    def noted_gradient(tape, *args, **kwargs):
        result = gradient(tape, *args, **kwargs)
        if threading.get_ident() == thread:
            returned.extend(tf.nest.flatten(result))
        return result

    with patching:
        tape_class._push_tape = push_and_watch
        tape_class.watched_variables = watched_variables
        tape_class.gradient = noted_gradient
        try:
            yield returned
        finally:
            tape_class._push_tape, tape_class.watched_variables = push, variables
            tape_class.gradient = gradient


@contextlib.contextmanager
def functions_inlined() -> Iterator[None]:
    """Makes calls of `tf.function`s by this thread a part of the graph that is being traced.

    Otherwise what they assign to variables in a stateless scope would be tensors of other graphs.
    """
    thread, function_class = threading.get_ident(), polymorphic_function.Function
    call = function_class.__call__

    def inlined(function, *args, **kwargs):
        if threading.get_ident() != thread or tf.executing_eagerly():
            return call(function, *args, **kwargs)
        python = function.python_function
        if function._autograph:
            enabled = ag_ctx.ControlStatusCtx(status=ag_ctx.Status.ENABLED)
            python = tf.__internal__.autograph.tf_convert(python, enabled)
        return python(*args, **kwargs)

    with patching:
        function_class.__call__ = inlined
        try:
            yield
        finally:
            function_class.__call__ = call


def device_in_scope() -> str:
    """Returns the device of the `tf.device` blocks around. What is traced depends on it."""
    return context.context().device_name


def skipping(dataset: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """The dataset without its first elements, on the device on which the dataset is."""
    with tf.device(dataset._variant_tensor.device):
        return dataset.skip(count)


class Elements:
    """The elements of an iterator of this process, one after the other.

    An optional for each element, which asks whether there is one and then for its value, takes ten
    times as long; Python's `next` takes four times as long.
    """

    def __init__(self, iterator: tf.data.Iterator):
        """Reads nothing yet.

        Args:
          iterator: on this process's device.
        """
        self._iterator = iterator
        self._flat = {
            "output_types": iterator._flat_output_types,
            "output_shapes": iterator._flat_output_shapes,
        }
        self._spec = iterator.element_spec
        leaves = tf.nest.flatten(self._spec)
        self._is_plain = all(isinstance(leaf, tf.TensorSpec) for leaf in leaves)
        # The end is an error, which must not be found by others who use the same executor.
        self._executor = executor.new_executor(enable_async=False)

    def next(self) -> Any:
        """The next element.

        Raises:
          EOFError: there is none.
          tf.errors.OpError: the dataset failed.
        """
        try:
            with context.executor_scope(self._executor):
                flat = tf.raw_ops.IteratorGetNext(
                    iterator=self._iterator._iterator_resource, **self._flat
                )
        except tf.errors.OutOfRangeError as e:
            self._executor.clear_error()
            if "End of sequence" not in e.message:
                raise
            raise EOFError from None
        except tf.errors.OpError:
            self._executor.clear_error()
            raise
        if self._is_plain:
            return tf.nest.pack_sequence_as(self._spec, flat)
        return structure.from_compatible_tensor_list(self._spec, flat)


def length_of(dataset: tf.data.Dataset) -> int:
    """The number of a dataset's elements, or a negative number: no end, or not known."""
    with tf.device(dataset._variant_tensor.device):
        return int(dataset.cardinality().numpy())


def chief_device() -> str:
    """Returns the device of this process, under the name that the cluster has for it."""
    return f"/job:{context.get_server_def().job_name}"


def on_chief(value: Any, dtype: tf.DType) -> tf.Tensor:
    """Makes a tensor in this process, whatever device is in scope.

    To enter `tf.device` would take longer than to make the tensor.

    Args:
      value: a number, or an array that must not change afterwards.
      dtype: the tensor's dtype.
    """
    return EagerTensor(value, None, dtype.as_datatype_enum)


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
        self._captures = None
        if not any(callable(c) for c in function._captured_inputs):
            self._captures = function.captured_inputs

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
        manager: CancellationManager | None = None,
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
        # Some captures are chosen by worker: a table, or the worker's index.
        captures = self._function.captured_inputs if self._captures is None else self._captures
        given = [*inputs, *captures, *place]
        with _Interpolated(self._graph):
            if manager is None:
                return execute.execute(
                    self._name, self._outputs, given, self._attrs, context.context()
                )
            return execute.execute_with_cancellation(
                self._name, self._outputs, given, self._attrs, context.context(), manager
            )

    def packed(self, outputs: list[tf.Tensor] | None) -> Any:
        """Returns flat outputs in the structure that the Python function returned."""
        return self._inner.function_type.pack_output(outputs)
