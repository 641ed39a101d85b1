"""Tapes, functions in functions and Python calls in a trace: private names of TensorFlow 2.21."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx
from tensorflow.python.eager.polymorphic_function import (
    autograph_util,
    function_type_utils,
    polymorphic_function,
)
from tensorflow.python.framework import ops
from tensorflow.python.util import variable_utils

from tfps import _tf

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
    """Makes calls of `tf.function`s by this thread a part of the code around them.

    Otherwise what they assign to variables in a stateless scope would be tensors of other graphs.
    Functions that Keras itself compiles with XLA assign nothing, and stay functions: what they do,
    such as a convolution of groups on a processor, has no other kernel.
    """
    thread, function_class = threading.get_ident(), polymorphic_function.Function
    call = function_class.__call__

    def inlined(function, *args, **kwargs):
        if threading.get_ident() != thread:
            return call(function, *args, **kwargs)
        python = function.python_function
        if function._jit_compile and python.__module__.startswith("keras."):
            return call(function, *args, **kwargs)
        # As TensorFlow binds them: to the signature if there is one, with its dtypes.
        bound = function_type_utils.canonicalize_function_inputs(
            args, kwargs, function.function_type, function._default_values
        )
        given = tf.nest.map_structure(_argument, (bound.args, bound.kwargs))
        if not function._autograph:
            return _results(python(*given[0], **given[1]), python)
        options = function._experimental_autograph_options
        with ag_ctx.ControlStatusCtx(status=ag_ctx.Status.ENABLED):
            converted = autograph_util.py_func_from_autograph(python, options)
            return _results(converted(*given[0], **given[1]), python)

    with patching:
        function_class.__call__ = inlined
        try:
            yield
        finally:
            function_class.__call__ = call


def _argument(value: Any) -> Any:
    """What a `tf.function` makes of an argument, or of a part of it: a tensor of an array."""
    if isinstance(value, (np.ndarray, np.generic)):
        return tf.convert_to_tensor(value)
    return value


def _results(values: Any, function: Callable) -> Any:
    """What a `tf.function` makes of what its Python function returns: tensors and composites.

    Raises:
      TypeError: a value is nothing of this kind, as in TensorFlow.
    """

    def converted(value):
        if value is None or isinstance(value, (tf.Operation, tf.TensorArray)):
            return value
        try:
            return ops.convert_to_tensor_or_composite(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"the tf.function {function} returned a {type(value).__name__}, but may return "
                "only tensors, extension types and None; return what can become a tensor"
            ) from None

    tensors = variable_utils.convert_variables_to_tensors(values)
    return tf.nest.map_structure(converted, tensors, expand_composites=True)


def python_on_chief() -> contextlib.AbstractContextManager[None]:
    """A context in which operations that call Python (`tf.py_function`) are placed on the chief.

    Only the process that made such an operation has the Python function.
    """
    if tf.executing_eagerly():
        return contextlib.nullcontext()
    chief = f"{_tf.chief_device()}/replica:0/task:0/device:CPU:0"
    return tf.compat.v1.device(lambda op: chief if op.type in _PYTHON else op.device)


_PYTHON = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
