"""Error feedback: what a payload left out is sent later."""

import dataclasses

import tensorflow as tf

from tfps import errors
from tfps.compression.adapted import adapted
from tfps.compression.base import MIN_BYTES, Codec, DType, Payload, PlainCodec, Shape, State
from tfps.compression.kernels.compiling import compiled
from tfps.compression.kernels.finite import all_finite, bounded


@compiled
def _add(tensor, residual):
    tensor = tf.cast(tensor, tf.float32)
    total = bounded(tensor + residual)
    # A gradient with an infinity or NaN is left out: the residual would keep it forever.
    return tf.where(all_finite(tensor), total, residual)


@dataclasses.dataclass(frozen=True)
class ErrorFeedback(Codec):
    """Adds to each tensor what earlier payloads left out (the residual).

    Seide et al., "1-Bit Stochastic Gradient Descent" (2014); Karimireddy et al., "Error Feedback
    Fixes SignSGD and other Gradient Compression Schemes" (2019). Over the steps, all that was
    encoded is decoded, except for the present residual.

    A tensor with an element that is not finite in float32 is skipped: the payload is the one of
    the residual alone, so the residual stays finite.

    Attributes:
      codec: the codec that makes the payload. Its `under_feedback` takes its place: a `RandomK`
        is replaced by its unscaled form.

    Raises:
      ConfigError: `codec` is not a codec, or has no form under feedback.
    """

    codec: Codec
    min_bytes: int = dataclasses.field(default=MIN_BYTES, init=False)
    feedback: bool | None = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        codec = adapted(self.codec)
        if codec.keeps_residual:
            raise errors.ConfigError(
                f"{codec!r} already keeps what it does not send; use it without ErrorFeedback"
            )
        object.__setattr__(self, "codec", codec.under_feedback)
        object.__setattr__(self, "min_bytes", self.codec.min_bytes)

    @property
    def biased(self) -> bool:
        return self.codec.biased

    @property
    def keeps_residual(self) -> bool:
        return True

    @property
    def not_for_weights(self) -> str:
        return "it sends in later steps what it left out of this one, and weights are sent once"

    @property
    def matrices(self) -> bool:
        return self.codec.matrices

    @property
    def jit(self) -> bool:
        return self.codec.jit

    def for_rows(self, weights: bool = False) -> Codec:
        return self.codec.for_rows(weights)

    def initial_state(self, shape: Shape) -> State:
        """(residual float32 of `shape`, then the state of the codec)."""
        return (tf.zeros(shape, tf.float32), *self.codec.initial_state(shape))

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        residual, *inner = state
        total = _add(tensor, residual)
        payload, after = self.codec.encode(total, tuple(inner), seed)
        return payload, (self.codec.error(total, payload), *after)

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        return self.codec.decode(payload, shape, dtype)

    def error(self, tensor: tf.Tensor, payload: Payload) -> tf.Tensor:
        return self.codec.error(tensor, payload)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        return self.codec.payload_bytes(shape, "float32")


def with_feedback(codec: PlainCodec) -> Codec:
    """The codec as gradients use it: in `ErrorFeedback` if `codec.feedback` says so.

    If `codec.feedback` is None, exactly the biased codecs are wrapped. A codec that keeps a
    residual of its own, such as DGC, is returned as it is.

    Raises:
      ConfigError: `codec` is not a codec, or feedback is asked for and the codec has no form
        under feedback.
    """
    codec = adapted(codec)
    if codec.keeps_residual:
        return codec
    wanted = codec.biased if codec.feedback is None else codec.feedback
    return ErrorFeedback(codec) if wanted else codec
