"""What a codec is.

A codec turns a tensor into a payload, the tensors that cross the network, and
back. It is pure: what it remembers between steps is a state that goes in and
comes out, so that the step that carries it can be compiled, and moved.
"""

import dataclasses
import math

import tensorflow as tf

from tfps import errors
from tfps.compression.kernels import rounding

# Identity must cost nothing where nothing is gained: a bias or a gain of a few
# hundred floats is smaller than the message that carries it.
MIN_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """Base of all codecs: immutable settings, compared by value.

    Attributes:
      min_bytes: variables smaller than this are left uncompressed.
      feedback: whether to keep what was not sent and add it to the next
        gradient (`ErrorFeedback`); None does so exactly if the codec is biased.
    """

    min_bytes: int = MIN_BYTES
    feedback: bool | None = None

    def __post_init__(self):
        if isinstance(self.min_bytes, bool) or not isinstance(self.min_bytes, int):
            raise errors.ConfigError(
                f"min_bytes={self.min_bytes!r} is not a number of bytes; give a whole number, 0 to "
                "compress variables of any size"
            )
        if self.feedback not in (None, True, False):
            raise errors.ConfigError(
                f"feedback={self.feedback!r} is none of True, False and None; leave it out to have "
                "feedback exactly where the codec is biased"
            )

    @property
    def biased(self) -> bool:
        """Whether the expectation of what arrives differs from what was sent."""
        return False

    @property
    def not_for_weights(self) -> str | None:
        """Why parameters cannot be pulled through this codec; None if they can."""
        return None

    @property
    def matrices(self) -> bool:
        """Whether it needs each variable by itself, in two dimensions or more.

        Other codecs see flat buckets of many variables.
        """
        return False

    @property
    def remembers(self) -> bool:
        """Whether what a payload leaves out is sent by later ones."""
        return False

    @property
    def under_feedback(self) -> "Codec":
        """The form of this codec that `ErrorFeedback` wraps; `ConfigError` if there is none."""
        return self

    def for_rows(self, weights: bool = False) -> "Codec":
        """The codec for rows of an embedding table, which come and go and so keep no state.

        Args:
          weights: whether the rows are parameters instead of gradients. Parameters
            are rounded to nearest: noise that averages out in a sum of gradients
            would only disturb them.

        Returns:
          A codec for tensors [rows, width] whose number of rows may be unknown.
        """
        return RowInt8("nearest" if weights else "stochastic", min_bytes=self.min_bytes)

    @property
    def jit(self) -> bool:
        """Whether `encode` has static shapes only, so that a caller may compile it with XLA."""
        return True

    def initial_state(self, shape: tuple[int, ...]) -> tuple:
        """What `encode` remembers, before the first step: a tuple of tensors, often empty."""
        del shape
        return ()

    def encode(self, tensor: tf.Tensor, state: tuple, seed: tf.Tensor) -> tuple[tuple, tuple]:
        """Makes the payload.

        Args:
          tensor: of a floating dtype and static shape.
          state: of `initial_state` or of the last `encode`.
          seed: int32[2], another one for each step and tensor.

        Returns:
          (payload, state): the payload is a tuple of tensors.
        """
        raise NotImplementedError

    def decode(self, payload: tuple, shape: tuple[int, ...], dtype) -> tf.Tensor:
        """What arrives: a tensor of the shape and dtype of the one that was encoded."""
        raise NotImplementedError

    def error(self, tensor: tf.Tensor, payload: tuple) -> tf.Tensor:
        """`tensor` less what `payload` says of it; codecs that know a shorter way override it."""
        return tensor - self.decode(payload, tuple(tensor.shape), tensor.dtype)

    def payload_bytes(self, shape: tuple[int, ...], dtype) -> int:
        """Bytes of the payload of such a tensor; an upper bound where they vary."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Identity(Codec):
    """Sends the tensor as it is."""

    def for_rows(self, weights=False):
        del weights
        return self

    def encode(self, tensor, state, seed):
        del seed
        return (tensor,), state

    def decode(self, payload, shape, dtype):
        return tf.cast(tf.reshape(payload[0], shape), dtype)

    def payload_bytes(self, shape, dtype):
        return math.prod(shape) * tf.as_dtype(dtype).size


@dataclasses.dataclass(frozen=True)
class RowInt8(Codec):
    """Eight bits an element and one float32 scale a row, for rows of embedding tables.

    It is `Int8` with a row for a block, and without feedback: what was not sent
    of a row could only be added the next time that very row is touched.

    A row with a non-finite element arrives non-finite.

    Attributes:
      rounding: "stochastic" (unbiased) or "nearest".
    """

    rounding: str = "stochastic"

    def __post_init__(self):
        super().__post_init__()
        rounding.require_mode(self.rounding)

    @property
    def biased(self):
        return self.rounding == "nearest"

    def for_rows(self, weights=False):
        return dataclasses.replace(self, rounding="nearest") if weights else self

    def encode(self, tensor, state, seed):
        rows = tf.cast(tensor, tf.float32)
        return rounding.to_int8(rows, seed if self.rounding == "stochastic" else None), state

    def decode(self, payload, shape, dtype):
        values, scales = payload
        return tf.cast(tf.cast(values, tf.float32) * scales[:, None], dtype)

    def payload_bytes(self, shape, dtype):
        del dtype
        rows, width = shape
        return rows * (width + 4)
