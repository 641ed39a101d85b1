"""Error feedback: what was not sent is sent later."""

import dataclasses

import tensorflow as tf

from tfps import errors
from tfps.compression.base import MIN_BYTES, Codec
from tfps.compression.dgc import DGC
from tfps.compression.kernels.compiling import compiled
from tfps.compression.kernels.finite import all_finite, bounded


@compiled
def _add(tensor, residual):
    tensor = tf.cast(tensor, tf.float32)
    total = bounded(tensor + residual)
    # A gradient with an infinity or NaN is left out, or the residual would keep it forever.
    return tf.where(all_finite(tensor), total, residual)


@dataclasses.dataclass(frozen=True)
class ErrorFeedback(Codec):
    """Adds to each tensor what earlier payloads left out.

    Seide et al., "1-Bit Stochastic Gradient Descent" (2014); Karimireddy et al.,
    "Error Feedback Fixes SignSGD and other Gradient Compression Schemes" (2019).
    Over the steps, all that was encoded is decoded, except for the residual
    that is still here.

    A tensor with an element that is not finite in float32 is skipped: the payload
    is that of the residual alone, which so stays finite.

    Attributes:
      codec: what makes the payload; a `RandomK` is replaced by its unscaled form.
    """

    codec: Codec
    min_bytes: int = dataclasses.field(default=MIN_BYTES, init=False)
    feedback: bool | None = dataclasses.field(default=False, init=False)

    def __post_init__(self):
        if not isinstance(self.codec, Codec):
            raise errors.ConfigError(
                f"{self.codec!r} is not a codec; give one, such as TopK(0.01), or use parse()"
            )
        if isinstance(self.codec, (ErrorFeedback, DGC)):
            raise errors.ConfigError(
                f"{self.codec!r} already keeps what it does not send; use it without ErrorFeedback"
            )
        object.__setattr__(self, "codec", self.codec.under_feedback)
        object.__setattr__(self, "min_bytes", self.codec.min_bytes)

    @property
    def biased(self):
        return self.codec.biased

    @property
    def remembers(self):
        return True

    @property
    def not_for_weights(self):
        return "it sends in later steps what it left out of this one, and weights are sent once"

    @property
    def matrices(self):
        return self.codec.matrices

    @property
    def jit(self):
        return self.codec.jit

    def for_rows(self, weights=False):
        return self.codec.for_rows(weights)

    def initial_state(self, shape):
        """(residual float32, then the state of the codec)."""
        return (tf.zeros(shape, tf.float32), *self.codec.initial_state(shape))

    def encode(self, tensor, state, seed):
        residual, *inner = state
        total = _add(tensor, residual)
        payload, inner = self.codec.encode(total, tuple(inner), seed)
        return payload, (self.codec.error(total, payload), *inner)

    def decode(self, payload, shape, dtype):
        return self.codec.decode(payload, shape, dtype)

    def error(self, tensor, payload):
        return self.codec.error(tensor, payload)

    def payload_bytes(self, shape, dtype):
        return self.codec.payload_bytes(shape, tf.float32)


def with_feedback(codec: Codec) -> Codec:
    """The codec as it is used on gradients: in `ErrorFeedback` if `codec.feedback` says so.

    Left at None, exactly the biased codecs are wrapped. DGC keeps what it does
    not send by itself, and is returned as it is.
    """
    if isinstance(codec, (ErrorFeedback, DGC)):
        return codec
    wanted = codec.biased if codec.feedback is None else codec.feedback
    return ErrorFeedback(codec) if wanted else codec
