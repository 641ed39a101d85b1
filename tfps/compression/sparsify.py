"""A few elements, in full precision."""

import dataclasses
import math

import tensorflow as tf

from tfps import errors
from tfps.compression.base import Codec, DType, Payload, Shape, State
from tfps.compression.kernels import largest, scattering, strata


def require_ratio(ratio: float) -> None:
    """Raises `ConfigError` unless 0 < ratio <= 1."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise errors.ConfigError(
            f"ratio={ratio!r} is not a fraction of the elements to send; "
            "give a number above 0 and at most 1, such as 0.01"
        )


def count(shape: tuple[int, ...], ratio: float) -> int:
    """How many elements of a tensor are sent: at least one, unless the tensor is empty."""
    n = math.prod(shape)
    # In binary, 0.07 * 100 is a little above 7, and must not become 8.
    return min(n, max(1, math.ceil(ratio * n - 1e-6)))


@dataclasses.dataclass(frozen=True)
class TopK(Codec):
    """The elements of largest magnitude, in full precision, with their indices.

    The selection is approximate: a threshold is estimated from a sample, as in Lin et al., "Deep
    Gradient Compression" (2018). If the threshold selects too few elements, the payload is padded
    with zeros, so that it always has the same size.

    Without feedback, infinite elements are sent first and NaN is not sent.

    Attributes:
      ratio: fraction of the elements to send: ceil(ratio * n), and at least 1. An element takes
        eight bytes, so 0.01 sends a fiftieth of the bytes of float32.
    """

    ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ratio(self.ratio)

    @property
    def biased(self) -> bool:
        return True

    @property
    def not_for_weights(self) -> str:
        return "it sends only the largest elements, and the others would arrive as zeros"

    @property
    def jit(self) -> bool:
        return False

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        k = count(tuple(tensor.shape), self.ratio)
        flat = tf.reshape(tf.cast(tensor, tf.float32), [-1])
        values, indices = largest.largest(flat, k, seed)
        return (tf.ensure_shape(values, [k]), tf.ensure_shape(indices, [k])), state

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        values, indices = payload
        return scattering.scatter(values, indices, shape, dtype)

    def error(self, tensor: tf.Tensor, payload: Payload) -> tf.Tensor:
        return scattering.rest(tensor, payload[1])

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        return count(shape, self.ratio) * 8


@dataclasses.dataclass(frozen=True)
class RandomK(Codec):
    """One random element out of every 1/ratio neighbours; the indices are not sent.

    The tensor is cut into k strata of about equal length. The seed crosses the network instead of
    the indices, which follow from the seed. Konecny et al., "Federated Learning: Strategies for
    Improving Communication Efficiency" (2016), call this a subsampled update.

    Attributes:
      ratio: fraction of the elements to send: ceil(ratio * n), and at least 1.
      unbiased: whether to multiply each element by the length of its stratum, so that the
        expectation is right. Under error feedback elements are never multiplied, since what is
        not sent arrives later and would then arrive several times.
    """

    ratio: float
    unbiased: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ratio(self.ratio)
        if not isinstance(self.unbiased, bool):
            raise errors.ConfigError(f"unbiased={self.unbiased!r} is no bool; give True or False")

    @property
    def biased(self) -> bool:
        return not self.unbiased

    @property
    def under_feedback(self) -> Codec:
        return dataclasses.replace(self, unbiased=False)

    @property
    def not_for_weights(self) -> str:
        return "it sends a random few of the elements, and the others would arrive as zeros"

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        shape = tuple(tensor.shape)
        n, k = math.prod(shape), count(shape, self.ratio)
        flat = tf.reshape(tf.cast(tensor, tf.float32), [-1])
        values = tf.gather(flat, strata.choose(n, k, seed))
        if self.unbiased:
            values *= strata.lengths(n, k)
        return (values, tf.convert_to_tensor(seed)), state

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        values, seed = payload
        n, k = math.prod(shape), count(shape, self.ratio)
        return scattering.scatter(values, strata.choose(n, k, seed), shape, dtype)

    def error(self, tensor: tf.Tensor, payload: Payload) -> tf.Tensor:
        if self.unbiased:
            return super().error(tensor, payload)
        shape = tuple(tensor.shape)
        chosen = strata.choose(math.prod(shape), count(shape, self.ratio), payload[1])
        return scattering.rest(tensor, chosen)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        return count(shape, self.ratio) * 4 + 8
