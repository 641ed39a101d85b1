"""Deep Gradient Compression."""

import dataclasses
import math

import tensorflow as tf

from tfps import errors
from tfps.compression import sparsify
from tfps.compression.base import Codec, DType, Payload, Shape, State
from tfps.compression.kernels import largest, scattering
from tfps.compression.kernels.compiling import compiled
from tfps.compression.kernels.finite import all_finite, bounded

# The fraction of the elements that the first step of a warm-up sends.
_FIRST = 0.25


def _momentum(gradient, u, finite, momentum):
    return tf.where(finite, bounded(momentum * u + tf.cast(gradient, tf.float32)), u)


@compiled
def _accumulate(gradient, u, v, momentum):
    finite = all_finite(tf.cast(gradient, tf.float32))
    total = bounded(v + _momentum(gradient, u, finite, momentum))
    return tf.where(finite, total, v), finite


def _settled(gradient, u, v, finite, momentum, indices):
    # `_accumulate` has computed the new u before. Computing u again is cheaper than storing and
    # reading it, since memory traffic takes most of the time.
    return scattering.zero(_momentum(gradient, u, finite, momentum), v, indices=indices)


_settle = compiled(_settled)


@dataclasses.dataclass(frozen=True)
class DGC(Codec):
    """The largest elements of a gradient that accumulates with momentum.

    Lin et al., "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed
    Training" (2018): u = momentum * u + gradient, v = v + u; the largest elements of v are sent,
    and u and v are set to zero there. DGC replaces the optimizer's momentum, so train with plain
    SGD. It keeps a residual (v) of its own. Clipping is left to the optimizer's settings.

    A gradient with an element that is not finite in float32 is skipped: u and v stay as they are,
    and the largest elements of v are sent.

    Attributes:
      ratio: fraction of the elements to send: ceil(ratio * n), and at least 1.
      momentum: in [0, 1). With 0, DGC is top-k with error feedback.
      warmup: steps during which the fraction falls exponentially, from 25% at the first step to
        `ratio` after the last: 0.25 * (ratio / 0.25) ** (step / warmup).
    """

    ratio: float
    momentum: float = 0.9
    warmup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        sparsify.require_ratio(self.ratio)
        if not isinstance(self.momentum, (int, float)) or not 0 <= self.momentum < 1:
            raise errors.ConfigError(
                f"momentum={self.momentum!r} is not a decay of accumulated gradients; "
                "give a number of at least 0 and below 1, such as 0.9"
            )
        if not isinstance(self.warmup, int) or isinstance(self.warmup, bool) or self.warmup < 0:
            raise errors.ConfigError(
                f"warmup={self.warmup!r} is not a number of steps; give a whole number, 0 for none"
            )

    @property
    def biased(self) -> bool:
        return True

    @property
    def keeps_residual(self) -> bool:
        return True

    @property
    def not_for_weights(self) -> str:
        return "it sends only the largest accumulated changes, and the others would be zeros"

    @property
    def jit(self) -> bool:
        return False

    def initial_state(self, shape: Shape) -> State:
        """(u, v: float32 of `shape`; steps done: int32 scalar)."""
        zeros = tf.zeros(shape, tf.float32)
        return zeros, zeros, tf.zeros([], tf.int32)

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        shape = tuple(tensor.shape)
        *sums, step = state
        gradient, u, v = (tf.reshape(t, [-1]) for t in (tensor, *sums))
        momentum = tf.constant(self.momentum, tf.float32)
        v, finite = _accumulate(gradient, u, v, momentum)
        k = self._count(shape, step)
        values, indices = largest.largest(v, k, seed)
        if not self.warmup:
            values, indices = tf.ensure_shape(values, [k]), tf.ensure_shape(indices, [k])
        # During a warm-up k changes, and XLA would compile the function for every k.
        settle = _settled if self.warmup else _settle
        u, v = settle(gradient, u, v, finite, momentum, indices)
        u, v = tf.reshape(u, shape), tf.reshape(v, shape)
        return (values, indices), (u, v, step + 1)

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        values, indices = payload
        return scattering.scatter(values, indices, shape, dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        """The bytes after the warm-up. During the warm-up, payloads are larger."""
        del dtype
        return sparsify.count(shape, self.ratio) * 8

    def _count(self, shape: Shape, step: tf.Tensor) -> int | tf.Tensor:
        final = sparsify.count(shape, self.ratio)
        if not self.warmup or self.ratio >= _FIRST:
            return final
        progress = tf.cast(step, tf.float32) / self.warmup
        fraction = _FIRST * (self.ratio / _FIRST) ** progress
        k = tf.cast(tf.math.ceil(fraction * math.prod(shape)), tf.int32)
        return tf.where(step < self.warmup, tf.maximum(k, final), final)
