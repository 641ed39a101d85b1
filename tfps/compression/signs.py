"""One or two bits for an element: its sign, or its sign and whether it is zero."""

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
