"""One or two bits for an element: its sign, and whether it is zero, or large."""

import dataclasses

import tensorflow as tf

from tfps import errors
from tfps.compression.base import Codec, DType, Payload, Shape, State
from tfps.compression.kernels import blocks, hashing, rounding


def _pack(codes: list[tf.Tensor], bits: int) -> tf.Tensor:
    # Code i takes the bits from i * `bits` on. The codes of a byte come from elements that lie a
    # fraction of a block apart, not side by side, so that every operation is on whole vectors.
    byte = codes[0]
    for i, code in enumerate(codes[1:], 1):
        byte = byte | tf.bitwise.left_shift(code, tf.constant(i * bits, code.dtype))
    return byte


def _unpack(byte: tf.Tensor, bits: int) -> list[tf.Tensor]:
    mask = tf.constant((1 << bits) - 1, tf.uint8)
    shifts = [tf.constant(i, tf.uint8) for i in range(0, 8, bits)]
    return [tf.bitwise.bitwise_and(tf.bitwise.right_shift(byte, s), mask) for s in shifts]


@dataclasses.dataclass(frozen=True)
class Ternary(Codec):
    """-1, 0 or 1 times the largest magnitude of each block, at random but unbiased.

    Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning"
    (2017). An element takes two bits, so a byte holds four elements.

    A block with a non-finite element arrives non-finite.

    Attributes:
      block: number of elements that share a float32 scale. The variance is proportional to the
        scale, so small blocks err less.
    """

    block: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks.require_block(self.block)

    @property
    def not_for_weights(self) -> str:
        return "it leaves of each element only a random one of -1, 0 and 1 times a common scale"

    @property
    def under_feedback(self) -> Codec:
        raise errors.ConfigError(
            "Ternary with feedback=True: its random error can exceed the gradient, so that what is "
            "kept back would grow without bound; leave out feedback, or use OneBit"
        )

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        layout = blocks.Blocks.of(tuple(tensor.shape), self.block)
        x = layout.split(tensor)
        scale = rounding.peak(x)
        scale = tf.where(scale > rounding.TINY, scale, scale * 0.0)
        sent = hashing.uniform(seed, layout.shape) * scale[:, None] < tf.abs(x)
        code = tf.where(sent, tf.where(x < 0, 2, 1), 0)
        quarters = [tf.cast(c, tf.uint8) for c in tf.split(code, 4, 1)]
        return (_pack(quarters, 2), scale), state

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        byte, scale = payload
        codes = tf.concat(_unpack(byte, 2), 1)
        signs = tf.where(codes > 1, -1.0, tf.cast(codes, tf.float32))
        return blocks.Blocks.of(shape, self.block).join(signs * scale[:, None], shape, dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        layout = blocks.Blocks.of(shape, self.block)
        return layout.count * (layout.width // 4 + 4)


@dataclasses.dataclass(frozen=True)
class OneBit(Codec):
    """The sign of each element, eight in a byte, times the mean magnitude of the block.

    Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes"
    (2019): signs converge only with error feedback.

    A block with a non-finite element arrives non-finite.

    Attributes:
      block: number of elements that share a float32 scale.
    """

    block: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks.require_block(self.block)

    @property
    def biased(self) -> bool:
        return True

    @property
    def not_for_weights(self) -> str:
        return "it leaves of each element only its sign, which needs feedback over many steps"

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        del seed
        layout = blocks.Blocks.of(tuple(tensor.shape), self.block)
        x = layout.split(tensor)
        # Dividing first keeps the sum of finite elements finite.
        shares = rounding.across(tf.abs(x) * (1.0 / layout.width), tf.add)
        scale = tf.reduce_sum(shares, 1) * layout.padding_factor()
        eighths = [tf.cast(bit, tf.uint8) for bit in tf.split(x >= 0, 8, 1)]
        return (_pack(eighths, 1), scale), state

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        byte, scale = payload
        bits = tf.concat(_unpack(byte, 1), 1)
        signs = tf.where(bits > 0, scale[:, None], -scale[:, None])
        return blocks.Blocks.of(shape, self.block).join(signs, shape, dtype)

    def error(self, tensor: tf.Tensor, payload: Payload) -> tf.Tensor:
        layout = blocks.Blocks.of(tuple(tensor.shape), self.block)
        # The signs are known from the tensor, so the payload need not be unpacked.
        scale = payload[1][:, None]
        return layout.rest(tensor, tf.where(layout.split(tensor) >= 0, scale, -scale))

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        layout = blocks.Blocks.of(shape, self.block)
        return layout.count * (layout.width // 8 + 4)


# Times the mean magnitude: from there on an element is large. Of normal elements, both means of the
# magnitudes on its two sides are then the best two numbers (Lloyd, "Least Squares Quantization in
# PCM", 1982).
_LARGE = 1.23


@dataclasses.dataclass(frozen=True)
class TwoBit(Codec):
    """The sign of each element, and whether it is large; four in a byte.

    An element arrives as the mean magnitude of the large or of the other elements of its block,
    with its sign. An element is large from 1.23 times the mean magnitude of the block on. Of normal
    elements an eighth of the energy is lost, and with `OneBit` more than a third.

    A block with a non-finite element arrives non-finite.

    Attributes:
      block: number of elements that share two float32 magnitudes.
    """

    block: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks.require_block(self.block)

    @property
    def biased(self) -> bool:
        return True

    @property
    def not_for_weights(self) -> str:
        return (
            "it leaves of each element its sign and one of two magnitudes, which needs feedback "
            "over many steps"
        )

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        del seed
        layout = blocks.Blocks.of(tuple(tensor.shape), self.block)
        x = layout.split(tensor)
        # Dividing first keeps the sums of finite elements finite.
        shares = tf.abs(x) * (1.0 / layout.width)
        all_shares = _sum(shares)
        mean = all_shares * layout.padding_factor()
        large = tf.abs(x) > _LARGE * mean[:, None]
        large_shares, count = _sum(tf.where(large, shares, 0.0)), _sum(tf.cast(large, tf.float32))
        others = layout.width / layout.padding_factor() - count
        # What rounding leaves of nothing may be below zero.
        rest = tf.abs(all_shares - large_shares)
        magnitudes = [
            _mean(rest, others, layout.width),
            _mean(large_shares, count, layout.width),
        ]
        codes = tf.cast(x < 0, tf.uint8) | tf.cast(large, tf.uint8) * 2
        return (_pack(tf.split(codes, 4, 1), 2), tf.stack(magnitudes, 1)), state

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        byte, magnitudes = payload
        codes = tf.concat(_unpack(byte, 2), 1)
        size = tf.where(codes > 1, magnitudes[:, 1:], magnitudes[:, :1])
        signed = tf.where(tf.equal(codes % 2, 1), -size, size)
        return blocks.Blocks.of(shape, self.block).join(signed, shape, dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        layout = blocks.Blocks.of(shape, self.block)
        return layout.count * (layout.width // 4 + 8)


def _sum(rows: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(rounding.across(rows, tf.add), 1)


def _mean(shares: tf.Tensor, count: tf.Tensor, width: int) -> tf.Tensor:
    """The mean of `count` numbers whose shares of `width` are summed; 0 of none."""
    return shares * (width / tf.maximum(count, 1.0))
