"""What a batch is made of."""

from typing import Any

import keras
import tensorflow as tf

from tfps import _tf


def without_optionals(batch: Any) -> Any:
    """A batch, or the spec of batches, with None for what is missing.

    Keras's datasets carry a missing target or weight as an empty `tf.experimental.Optional`, and a
    missing input as None, whose spec is one of TensorFlow's own.
    """
    missing = (tf.experimental.Optional, tf.OptionalSpec, _tf.NoneTensorSpec)
    return keras.tree.map_structure(lambda t: None if isinstance(t, missing) else t, batch)


def length(batch: Any) -> tf.Tensor:
    """The number of examples in a batch, an int64 scalar: the length of its first tensor."""
    first = next(t for t in tf.nest.flatten(without_optionals(batch)) if t is not None)
    if first.shape.rank == 0:
        return tf.constant(1, tf.int64)
    return tf.shape(first, out_type=tf.int64)[0]


def is_dense(spec: Any) -> bool:
    """Whether batches of this spec are of nothing but dense tensors."""
    return all(one is None or isinstance(one, tf.TensorSpec) for one in tf.nest.flatten(spec))


def example(spec: Any) -> Any:
    """A batch of this spec, of one example: ones, zeros for integers, empty strings.

    Args:
      spec: nested `tf.TypeSpec`s; None for what is missing.
    """

    def made(one):
        if one is None:
            return None
        shape = [n or 1 for n in one.shape] if one.shape.rank is not None else []
        if one.dtype == tf.string or one.dtype.is_integer:
            whole = tf.zeros(shape, one.dtype)
        else:
            whole = tf.cast(tf.ones(shape), one.dtype)
        if isinstance(one, tf.RaggedTensorSpec):
            return tf.RaggedTensor.from_tensor(whole, ragged_rank=one.ragged_rank)
        return tf.sparse.from_dense(whole) if isinstance(one, tf.SparseTensorSpec) else whole

    return tf.nest.map_structure(made, spec)
