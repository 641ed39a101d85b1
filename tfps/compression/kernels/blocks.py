"""Cutting a tensor into blocks whose elements share a scale.

With one scale for a long tensor, a few large elements would leave no bits for the small ones. With
a scale for each block, a large element spoils only its block (QSGD, Alistarh et al. 2017, calls
blocks buckets).
"""

import dataclasses
import math

import tensorflow as tf

from tfps import errors

# Rows fill whole vector registers, and eight signs of a row fill whole bytes.
_ALIGN = 32


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How n elements lie in a matrix with a row for each block.

    Attributes:
      size: number of elements, n.
      count: number of blocks.
      width: number of elements in a block. The last elements of the last block are padding.
    """

    size: int
    count: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], block: int) -> "Blocks":
        """Cuts a tensor into blocks of equal width, of at most about `block` elements.

        Blocks of equal width, instead of a short last block, bound the padding to one alignment
        for each block, whatever n is.
        """
        size = math.prod(shape)
        count = max(1, math.ceil(size / block))
        width = max(1, math.ceil(math.ceil(size / count) / _ALIGN)) * _ALIGN
        return cls(size, max(1, math.ceil(size / width)), width)

    def split(self, tensor: tf.Tensor) -> tf.Tensor:
        """The tensor as float32 [count, width]; the padding is zero."""
        flat = tf.reshape(tf.cast(tensor, tf.float32), [-1])
        missing = self.count * self.width - self.size
        return tf.reshape(tf.pad(flat, [[0, missing]]) if missing else flat, self.shape)

    def join(self, blocks: tf.Tensor, shape: tuple[int, ...], dtype: str | tf.DType) -> tf.Tensor:
        """The inverse of `split`: a tensor of this shape and dtype."""
        return tf.cast(tf.reshape(tf.reshape(blocks, [-1])[: self.size], shape), dtype)

    def rest(self, tensor: tf.Tensor, blocks: tf.Tensor) -> tf.Tensor:
        """`tensor` minus its approximation by `blocks`, in the shape of the tensor.

        The difference is computed in blocks, so that in compiled code the tensor exists in the
        form of blocks only.
        """
        return self.join(self.split(tensor) - blocks, tuple(tensor.shape), tensor.dtype)

    def padding_factor(self) -> tf.Tensor:
        """float32 [count]: multiplies a mean over a whole block into a mean without the padding."""
        last = self.size - (self.count - 1) * self.width
        return tf.constant([1.0] * (self.count - 1) + [self.width / max(1, last)], tf.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of `split`: (count, width)."""
        return self.count, self.width


def require_block(block: int) -> None:
    """Raises `ConfigError` unless `block` is a positive integer."""
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise errors.ConfigError(
            f"block={block!r} is not a number of elements that share a scale; "
            "give a whole number of at least 1, such as 1024"
        )
