"""Casts to shorter floats."""

import dataclasses
import math

import tensorflow as tf

from tfps.compression.base import Codec, DType, Payload, Shape, State


@dataclasses.dataclass(frozen=True)
class _Cast(Codec):
    # Rounding to nearest errs by a fraction of each element, far below the noise of a gradient,
    # and in either direction. So a cast counts as unbiased, and it costs no residual unless
    # `feedback=True` asks for one.

    def for_rows(self, weights: bool = False) -> Codec:
        del weights
        return self

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        return tf.cast(tf.reshape(payload[0], shape), dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        return math.prod(shape) * 2


@dataclasses.dataclass(frozen=True)
class Float16(_Cast):
    """IEEE half precision, with a relative error of 2**-11 between 6e-5 and 65504.

    Finite values beyond that range are sent as +-65504, since one infinity would spoil the
    parameters for good. Infinities and NaN are sent as they are.
    """

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        del seed
        limit = tf.constant(tf.float16.max, tf.float16)
        if tensor.dtype.max > tf.float16.max:
            limit = tf.cast(limit, tensor.dtype)
            clipped = tf.clip_by_value(tensor, -limit, limit)
            tensor = tf.where(tf.math.is_finite(tensor), clipped, tensor)
        return (tf.cast(tensor, tf.float16),), state


@dataclasses.dataclass(frozen=True)
class BFloat16(_Cast):
    """The upper half of a float32, which has the range of float32 and a relative error of 2**-8.

    Infinities and NaN are sent as they are.
    """

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        del seed
        return (tf.cast(tensor, tf.bfloat16),), state
