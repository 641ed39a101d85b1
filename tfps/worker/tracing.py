"""Tracing what a worker runs: the scalars of a call, and the forms of what it carries."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# The scalars that the chief gives a call.
COUNT = tf.TensorSpec([], tf.int32)  # how many batches to take at most
STEP_NUMBER = tf.TensorSpec([], tf.int64)  # of the first step; seeds dropout and codecs
RATE = tf.TensorSpec([], tf.float32)  # learning rate
SHARE = tf.TensorSpec([], tf.float32)  # of a worker in the weighted mean of its round
REPEATS = tf.TensorSpec([], tf.int64)  # 0, or which ps have what is pushed; see `repeats_of`
EXPECTED = tf.TensorSpec([], tf.int32)  # how many workers push in a round

# The numbers of a training step, and of a push that is a call of its own.
STEP_NUMBERS = {"count": COUNT, "first": STEP_NUMBER, "learning_rate": RATE}
REPEATABLE_NUMBERS = {**STEP_NUMBERS, "repeats": REPEATS}
PUSH_NUMBERS = {
    "number": STEP_NUMBER,
    "share": SHARE,
    "expected": EXPECTED,
    "learning_rate": RATE,
    "repeats": REPEATS,
}


def traced(function: Callable, *arguments: Any) -> tf.types.experimental.ConcreteFunction:
    """The graph of a function for arguments of these forms."""
    return tf.function(function, autograph=False).get_concrete_function(*arguments)


def form(function: Callable, *arguments: Any) -> Any:
    """The nested `tf.TensorSpec`s of what a function returns."""
    return specs(traced(function, *arguments))


def specs(function: tf.types.experimental.ConcreteFunction) -> Any:
    """The nested `tf.TensorSpec`s of what a graph returns."""
    return tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype), function.structured_outputs
    )


def blank(specs: Any) -> Any:
    """Zeros in the form of nested specs; a dimension that is not known is 0."""
    return tf.nest.map_structure(lambda s: tf.zeros([n or 0 for n in s.shape], s.dtype), specs)
