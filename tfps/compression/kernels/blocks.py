"""Cutting a tensor into blocks that share a scale.

A few large elements in a long tensor would leave the others no bits; in a block
they spoil only their neighbours (QSGD, Alistarh et al. 2017, calls them buckets).
"""

import dataclasses
import math

import tensorflow as tf

from tfps import errors

# Rows of whole vector registers, whose eighths are whole bytes.
_ALIGN = 32


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How n elements lie in a matrix of blocks.

    Attributes:
      size: n.
      count: blocks.
      width: elements in each, the last ones of the last block being padding.
    """

    size: int
    count: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], block: int) -> "Blocks":
        """Blocks of at most about `block` elements, all of the same width.

        Equal blocks instead of a short last one bound the padding to one
        alignment a block however unlucky n is.
        """
        size = math.prod(shape)
        count = max(1, math.ceil(size / block))
        width = max(1, math.ceil(math.ceil(size / count) / _ALIGN)) * _ALIGN
        return cls(size, max(1, math.ceil(size / width)), width)

    def split(self, tensor: tf.Tensor) -> tf.Tensor:
        """float32 [count, width]; the padding is zero."""
        flat = tf.reshape(tf.cast(tensor, tf.float32), [-1])
        missing = self.count * self.width - self.size
        return tf.reshape(tf.pad(flat, [[0, missing]]) if missing else flat, self.shape)

    def join(self, blocks: tf.Tensor, shape: tuple[int, ...], dtype) -> tf.Tensor:
        """The inverse of `split`."""
        return tf.cast(tf.reshape(tf.reshape(blocks, [-1])[: self.size], shape), dtype)

    def rest(self, tensor: tf.Tensor, blocks: tf.Tensor) -> tf.Tensor:
        """`tensor` less its approximation by `blocks`, in the shape of the tensor.

        Subtracted in blocks: compiled, `tensor` then exists in that form only.
        """
        return self.join(self.split(tensor) - blocks, tuple(tensor.shape), tensor.dtype)

    def padding_factor(self) -> tf.Tensor:
        """float32 [count]: by which a mean over `width` becomes one over what is no padding."""
        last = self.size - (self.count - 1) * self.width
        return tf.constant([1.0] * (self.count - 1) + [self.width / max(1, last)], tf.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, self.width


def require_block(block: int) -> None:
    """Raises `ConfigError` unless `block` is a positive integer."""
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise errors.ConfigError(
            f"block={block!r} is not a number of elements that share a scale; "
            "give a whole number of at least 1, such as 1024"
        )
