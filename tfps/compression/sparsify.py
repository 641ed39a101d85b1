"""A few elements, exactly."""

import dataclasses
import math

import tensorflow as tf

from tfps import errors
from tfps.compression.base import Codec
from tfps.compression.kernels import largest, scattering, strata


def require_ratio(ratio: float) -> None:
    """Raises `ConfigError` unless 0 < ratio <= 1."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise errors.ConfigError(
            f"ratio={ratio!r} is not a fraction of the elements to send; "
            "give a number above 0 and at most 1, such as 0.01"
        )


def count(shape: tuple[int, ...], ratio: float) -> int:
    """How many elements of a tensor are sent: at least one of any that has one."""
    n = math.prod(shape)
    # Binary fractions: 0.07 * 100 is a little above 7 and must not become 8.
    return min(n, max(1, math.ceil(ratio * n - 1e-6)))


@dataclasses.dataclass(frozen=True)
class TopK(Codec):
    """The elements of largest magnitude, in full precision, with their indices.

    The selection is approximate, by a threshold estimated from a sample as in
    Lin et al., "Deep Gradient Compression" (2018). If it finds too few elements
    the payload is padded with zeros, so that it always has the same size.

    Without feedback, infinite elements are sent first and NaN is not sent.

    Attributes:
      ratio: fraction of the elements to send; ceil(ratio * n), at least 1. Each
        takes eight bytes, so that 0.01 sends a fiftieth of the bytes of float32.
    """

    ratio: float

    def __post_init__(self):
        super().__post_init__()
        require_ratio(self.ratio)

    @property
    def biased(self):
        return True

    @property
    def not_for_weights(self):
        return "it sends only the largest elements, and the others would arrive as zeros"

    @property
    def jit(self):
        return False

    def encode(self, tensor, state, seed):
        k = count(tuple(tensor.shape), self.ratio)
        flat = tf.reshape(tf.cast(tensor, tf.float32), [-1])
        values, indices = largest.largest(flat, k, seed)
        return (tf.ensure_shape(values, [k]), tf.ensure_shape(indices, [k])), state

    def decode(self, payload, shape, dtype):
        return scattering.scatter(*payload, shape, dtype)

    def error(self, tensor, payload):
        return scattering.rest(tensor, payload[1])

    def payload_bytes(self, shape, dtype):
        del dtype
        return count(shape, self.ratio) * 8


@dataclasses.dataclass(frozen=True)
class RandomK(Codec):
    """One random element out of every 1/ratio neighbours; the indices are not sent.

    The tensor is cut into k strata of about equal length. The seed crosses
    instead of the indices, which follow from it. Konecny et al., "Federated
    Learning: Strategies for Improving Communication Efficiency" (2016), call
    this a subsampled update.

    Attributes:
      ratio: fraction of the elements to send; ceil(ratio * n), at least 1.
      unbiased: whether to multiply each by the length of its stratum, so that
        the expectation is right. With feedback what is not sent arrives later,
        multiplied it would arrive several times: there it is always unscaled.
    """

    ratio: float
    unbiased: bool = True

    def __post_init__(self):
        super().__post_init__()
        require_ratio(self.ratio)
        if not isinstance(self.unbiased, bool):
            raise errors.ConfigError(f"unbiased={self.unbiased!r} is no bool; give True or False")

    @property
    def biased(self):
        return not self.unbiased

    @property
    def under_feedback(self):
        return dataclasses.replace(self, unbiased=False)

    @property
    def not_for_weights(self):
        return "it sends a random few of the elements, and the others would arrive as zeros"

    def encode(self, tensor, state, seed):
        shape = tuple(tensor.shape)
        n, k = math.prod(shape), count(shape, self.ratio)
        flat = tf.reshape(tf.cast(tensor, tf.float32), [-1])
        values = tf.gather(flat, strata.choose(n, k, seed))
        if self.unbiased:
            values *= strata.lengths(n, k)
        return (values, tf.convert_to_tensor(seed)), state

    def decode(self, payload, shape, dtype):
        values, seed = payload
        n, k = math.prod(shape), count(shape, self.ratio)
        return scattering.scatter(values, strata.choose(n, k, seed), shape, dtype)

    def error(self, tensor, payload):
        if self.unbiased:
            return super().error(tensor, payload)
        shape = tuple(tensor.shape)
        chosen = strata.choose(math.prod(shape), count(shape, self.ratio), payload[1])
        return scattering.rest(tensor, chosen)

    def payload_bytes(self, shape, dtype):
        del dtype
        return count(shape, self.ratio) * 4 + 8
