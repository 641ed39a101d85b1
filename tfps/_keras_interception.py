"""What code of the user's does to Keras variables and optimizers, intercepted.

Private names of Keras, as of Keras 3.15.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer

from tfps import _tf_tracing

__all__ = [
    "handles_are",
    "intercepted",
    "unchanged_variables",
    "watched_when_read",
]


@contextlib.contextmanager
def unchanged_variables() -> Iterator[None]:
    """Lets assignments to Keras variables by this thread have no effect."""
    thread, original = threading.get_ident(), keras.Variable._direct_assign

    def assign(variable, value):
        if threading.get_ident() != thread:
            original(variable, value)

    with _tf_tracing.patching:
        keras.Variable._direct_assign = assign
        try:
            yield
        finally:
            keras.Variable._direct_assign = original


def watched_when_read(variable: keras.Variable) -> bool:
    """Whether a `tf.GradientTape` watches the variable as soon as it is read.

    That is settled when the variable is created; to freeze a layer does not change it.
    """
    created = vars(variable).get("_value")  # `getattr` would count as a look at the value.
    floating = tf.as_dtype(variable._dtype).is_floating
    return floating and getattr(created, "trainable", variable.trainable)


@contextlib.contextmanager
def handles_are(tensors: Mapping[int, tf.Tensor]) -> Iterator[None]:
    """Lets TensorFlow take tensors for Keras variables of which gradients are asked.

    TensorFlow differentiates for a variable's `handle`. In a stateless scope a variable has none.

    Args:
      tensors: `id` of a variable -> the tensor that stands for it on this thread.
    """
    thread, original = threading.get_ident(), keras.Variable.handle

    def handle(variable):
        tensor = tensors.get(id(variable)) if threading.get_ident() == thread else None
        return original.__get__(variable) if tensor is None else tensor

    with _tf_tracing.patching:
        keras.Variable.handle = property(handle)
        try:
            yield
        finally:
            keras.Variable.handle = original


@contextlib.contextmanager
def intercepted(
    apply: Callable[[keras.optimizers.Optimizer, Sequence[Any], Sequence[Any]], None],
    scale_loss: Callable[[keras.optimizers.Optimizer, tf.Tensor], tf.Tensor],
) -> Iterator[None]:
    """Calls functions in place of `apply` and `scale_loss` of all optimizers, on this thread.

    Args:
      apply: of an optimizer, gradients and variables.
      scale_loss: of an optimizer and a loss.
    """
    thread = threading.get_ident()

    def instead(original, function):
        def method(self, *args, **kwargs):
            here = threading.get_ident() == thread
            return (function if here else original)(self, *args, **kwargs)

        return method

    def applied(optimizer, grads, trainable_variables=None):
        if trainable_variables is None:
            if not optimizer.built:
                raise ValueError(
                    "apply was given gradients without variables, but the optimizer is not built; "
                    "give it the variables, or call optimizer.build(variables) before"
                )
            trainable_variables = optimizer._trainable_variables
        apply(optimizer, grads, trainable_variables)

    def scaled(optimizer, loss):
        return scale_loss(optimizer, loss)

    with _tf_tracing.patching:
        patched = [
            (cls, name, vars(cls)[name], function)
            for cls in _with_subclasses(BaseOptimizer)
            for name, function in (("apply", applied), ("scale_loss", scaled))
            if name in vars(cls)
        ]
        for cls, name, original, function in patched:
            setattr(cls, name, instead(original, function))
        try:
            yield
        finally:
            for cls, name, original, _ in patched:
                setattr(cls, name, original)


def _with_subclasses(cls: type) -> list[type]:
    """A class and all of its subclasses, each once."""
    found, todo = [], [cls]
    while todo:
        one = todo.pop()
        if one not in found:
            found.append(one)
            todo += one.__subclasses__()
    return found
