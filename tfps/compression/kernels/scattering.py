"""Scattering a few elements into zeros, and zeros into a tensor."""

import math

import tensorflow as tf

from tfps.compression.kernels.compiling import compiled


def scatter(
    values: tf.Tensor, indices: tf.Tensor, shape: tuple[int, ...], dtype: str | tf.DType
) -> tf.Tensor:
    """Zeros of this shape and dtype with `values` [k] added at the flat `indices` [k]."""
    flat = tf.scatter_nd(indices[:, None], values, [math.prod(shape)])
    return tf.cast(tf.reshape(flat, shape), dtype)


def zero(*tensors: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The flat float32 tensors with zeros at `indices` int32 [k]."""
    zeros = tf.zeros(tf.shape(indices), tf.float32)
    return tuple(tf.tensor_scatter_nd_update(t, indices[:, None], zeros) for t in tensors)


@compiled
def rest(tensor: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """`tensor` with zeros at the flat `indices` [k]. XLA scatters in half the time."""
    (flat,) = zero(tf.reshape(tf.cast(tensor, tf.float32), [-1]), indices=indices)
    return tf.cast(tf.reshape(flat, tensor.shape), tensor.dtype)
