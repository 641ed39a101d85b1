"""Codecs that are not subclasses of `Codec`: classes of users with the methods of the contract."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfps import errors
from tfps.compression.base import Codec, DType, Payload, PlainCodec, Shape, State


def is_codec(value: Any) -> bool:
    """Whether the value is a codec: a `Codec`, or an object with the methods of `PlainCodec`."""
    return isinstance(value, PlainCodec) and not isinstance(value, type)


def adapted(codec: PlainCodec) -> Codec:
    """The codec with all traits: the codec itself if it is a `Codec`, else an `Adapted`.

    Raises:
      ConfigError: the object lacks a method of the contract, or cannot be hashed.
    """
    if isinstance(codec, Codec):
        return codec
    if not is_codec(codec):
        raise errors.ConfigError(
            f"{codec!r} is not a codec; give one, such as TopK(0.01), or use parse()"
        )
    if type(codec).__hash__ is None:
        raise errors.ConfigError(
            f"{codec!r} cannot be hashed, but variables with equal codecs travel together; make "
            f"{type(codec).__name__} a dataclass(frozen=True), or give it __eq__ and __hash__"
        )
    settings = ("min_bytes", "feedback")
    return Adapted(codec, **{s: getattr(codec, s) for s in settings if hasattr(codec, s)})


@dataclasses.dataclass(frozen=True)
class Adapted(Codec):
    """Gives the default of each trait that an object with the methods of the contract lacks.

    Attributes:
      codec: the object. It must be hashable. Two `Adapted` are equal if their objects are.
    """

    codec: PlainCodec

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        return self.codec.encode(tensor, state, seed)

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        return self.codec.decode(payload, shape, dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        return self.codec.payload_bytes(shape, dtype)

    def initial_state(self, shape: Shape) -> State:
        return getattr(self.codec, "initial_state", super().initial_state)(shape)

    @property
    def biased(self) -> bool:
        return getattr(self.codec, "biased", super().biased)

    @property
    def keeps_residual(self) -> bool:
        return getattr(self.codec, "keeps_residual", super().keeps_residual)

    @property
    def is_identity(self) -> bool:
        return getattr(self.codec, "is_identity", super().is_identity)

    @property
    def jit(self) -> bool:
        return getattr(self.codec, "jit", super().jit)

    @property
    def matrices(self) -> bool:
        return getattr(self.codec, "matrices", super().matrices)

    @property
    def not_for_weights(self) -> str | None:
        return getattr(self.codec, "not_for_weights", super().not_for_weights)

    @property
    def under_feedback(self) -> Codec:
        other = getattr(self.codec, "under_feedback", self.codec)
        return self if other is self.codec else adapted(other)

    def for_rows(self, weights: bool = False) -> Codec:
        return adapted(getattr(self.codec, "for_rows", super().for_rows)(weights))

    def error(self, tensor: tf.Tensor, payload: Payload) -> tf.Tensor:
        return getattr(self.codec, "error", super().error)(tensor, payload)
