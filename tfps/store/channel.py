"""How a bucket crosses the network: which codec it passes, and in which pieces."""

import dataclasses
import math
from typing import Any

import tensorflow as tf

from tfps import errors
from tfps.compression import Codec, Identity, adapted, is_codec, parse


def chosen(choice: Any, variable: Any, weights: bool) -> Codec:
    """The codec for a variable's gradients or value.

    Args:
      choice: a codec or its text (see `tfps.compression.parse`), None for no codec, or a function
        of the variable that gives one of these.
      variable: has `path`, `shape` and `dtype`.
      weights: whether the codec is for the variable's value and not for its gradients.

    Returns:
      The codec; `Identity` if the variable is not of floating numbers or is smaller than the
      codec's `min_bytes`.

    Raises:
      ConfigError: the choice is no codec, or a codec that does not work for weights.
    """
    per_variable = callable(choice) and not is_codec(choice)
    codec = choice(variable) if per_variable else choice
    codec = Identity() if codec is None else codec
    codec = parse(codec) if isinstance(codec, str) else codec
    name = "pull" if weights else "push"
    if not is_codec(codec):
        raise errors.ConfigError(
            f"{name} gave {codec!r} for {variable.path}; it must be a codec of tfps.compression, "
            'such as Int8(), a text that names one, such as "int8", or None'
        )
    codec = adapted(codec)
    if weights and codec.not_for_weights:
        raise errors.ConfigError(
            f"pull={codec!r} does not work for parameters: {codec.not_for_weights}; use Float16, "
            f"BFloat16 or Int8, or Difference({codec!r})"
        )
    if codec.tracks_receiver and not weights:
        raise errors.ConfigError(
            f"push={codec!r} does not work for gradients, of which a ps holds no copy; use the "
            "codec alone"
        )
    dtype = tf.as_dtype(variable.dtype)
    small = math.prod(variable.shape) * dtype.size < codec.min_bytes
    return Identity() if small or not dtype.is_floating else codec


@dataclasses.dataclass(frozen=True)
class Channel:
    """The way of one bucket's values in one direction.

    Attributes:
      codec: encodes on the sender and decodes on the receiver.
      shape, dtype: of the bucket.
      pieces: the shape of each part that is encoded by itself. It is the whole bucket, or each of
        its shards if the codec needs matrices.
    """

    codec: Codec
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[int, ...], ...]

    def initial_state(self) -> tuple:
        """What the sender's codec remembers before the first step, a tuple for each piece."""
        return tuple(self.codec.initial_state(shape) for shape in self.pieces)

    def encode(self, tensor: tf.Tensor, state: tuple, seed: tf.Tensor) -> tuple[tuple, tuple]:
        """Encodes a bucket. The caller enters the sender's device.

        Args:
          tensor: of the bucket's shape.
          state: of `initial_state`, or of the step before.
          seed: int32 [2], another one for each step and bucket.

        Returns:
          (payload, state), each a tuple with an entry for each piece.
        """
        if self.codec.is_identity:
            return ((tensor,),), state

        # One function encodes all pieces, so that pieces of one shape, such as the matrices of
        # equal layers, are compiled once.
        encode = tf.function(self.codec.encode, jit_compile=self.codec.jit or None, autograph=False)
        sent = [
            encode(part, before, seed + tf.constant([0, i]))
            for i, (part, before) in enumerate(zip(self._split(tensor), state, strict=True))
        ]
        return tuple(payload for payload, _ in sent), tuple(after for _, after in sent)

    def decode(self, payload: tuple) -> tf.Tensor:
        """The bucket's tensor from a payload. The caller enters the receiver's device."""
        parts = [
            tf.reshape(self.codec.decode(part, shape, self.dtype), [-1])
            for part, shape in zip(payload, self.pieces, strict=True)
        ]
        return tf.reshape(parts[0] if len(parts) == 1 else tf.concat(parts, 0), self.shape)

    @property
    def payload_bytes(self) -> int:
        """Bytes that a step sends, as the codec predicts them."""
        return sum(self.codec.payload_bytes(shape, self.dtype) for shape in self.pieces)

    @property
    def values_bytes(self) -> int:
        """Bytes of the bucket's values."""
        return math.prod(self.shape) * tf.as_dtype(self.dtype).size

    def _split(self, tensor) -> list[tf.Tensor]:
        if len(self.pieces) == 1:
            return [tf.reshape(tensor, self.pieces[0])]
        sizes = [math.prod(shape) for shape in self.pieces]
        parts = tf.split(tf.reshape(tensor, [-1]), sizes)
        return [tf.reshape(t, shape) for t, shape in zip(parts, self.pieces, strict=True)]
