"""Eight bits for an element."""

import dataclasses

import tensorflow as tf

from tfps.compression.base import Codec, DType, Payload, Shape, State
from tfps.compression.kernels import blocks, rounding


@dataclasses.dataclass(frozen=True)
class Int8(Codec):
    """Multiples of a 127th of the largest magnitude of each block.

    With stochastic rounding, Int8 is QSGD with 127 levels and the maximum norm (Alistarh et al.,
    "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", 2017).

    A block with a non-finite element arrives non-finite.

    Attributes:
      rounding: "nearest", which is biased and errs by at most half a level, or "stochastic",
        which is unbiased and errs by up to one level.
      block: number of elements that share a float32 scale.
    """

    rounding: str = "nearest"
    block: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        rounding.require_mode(self.rounding)
        blocks.require_block(self.block)

    @property
    def biased(self) -> bool:
        return self.rounding == "nearest"

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        split = blocks.Blocks.of(tuple(tensor.shape), self.block).split(tensor)
        return rounding.to_int8(split, seed if self.rounding == "stochastic" else None), state

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        return blocks.Blocks.of(shape, self.block).join(_blocks(payload), shape, dtype)

    def error(self, tensor: tf.Tensor, payload: Payload) -> tf.Tensor:
        return blocks.Blocks.of(tuple(tensor.shape), self.block).rest(tensor, _blocks(payload))

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        layout = blocks.Blocks.of(shape, self.block)
        return layout.count * (layout.width + 4)


def _blocks(payload: Payload) -> tf.Tensor:
    values, scales = payload
    return tf.cast(values, tf.float32) * scales[:, None]
