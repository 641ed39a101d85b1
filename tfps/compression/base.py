"""What a codec is: the contract, and the traits that have defaults.

A codec turns a tensor into a payload, the tensors that cross the network, and back. A codec is
pure. What it remembers between steps is a state that goes in and comes out, so that the step that
carries the state can be compiled, and moved to another worker.
"""

import abc
import dataclasses
import math
from typing import Protocol, TypeAlias, runtime_checkable

import tensorflow as tf

from tfps import errors
from tfps.compression.kernels import rounding

# A bias or a gain of a few hundred floats is smaller than the message that carries it, so
# compressing it would cost time and save none.
MIN_BYTES = 4096

Shape: TypeAlias = tuple[int, ...]
DType: TypeAlias = str | tf.DType
Payload: TypeAlias = tuple[tf.Tensor, ...]
State: TypeAlias = tuple[tf.Tensor, ...]


@runtime_checkable
class PlainCodec(Protocol):
    """The contract: an object with these three methods is a codec.

    An author writes a subclass of `Codec`, which adds the defaults of all traits, or any class
    with these methods, which `adapted` completes. `Codec` documents the methods and the traits.
    """

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        """Makes the payload of a tensor."""

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        """Makes a tensor of what arrived."""

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        """Predicts the size of a payload."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Codec(abc.ABC):
    """Base of all codecs: immutable settings, compared by value.

    **The contract.** A subclass writes `encode`, `decode` and `payload_bytes`, and
    `initial_state` if it remembers something from step to step.

    | member | called | where |
    |---|---|---|
    | `payload_bytes` | once for each bucket, before the first step | in Python, on the chief |
    | `initial_state` | before a worker's first step | on the sender, in a `tf.function` |
    | `encode` | in every step, for each bucket | on the sender, in a `tf.function` |
    | `decode` | in every step, after `encode` | on the receiver, in a `tf.function` |

    The sender of a gradient is a worker, and its receiver a parameter server, which decodes the
    payload as a part of the optimizer's update. The sender of a parameter is a parameter server,
    and its receiver a worker; a parameter is encoded with the state of `initial_state` in every
    step, and with a constant seed. A tensor is the flat concatenation of many variables, unless
    the codec asks for `matrices`.

    **Optional traits.** All other members have defaults, which suit a codec that is unbiased,
    remembers nothing and can be compiled by XLA. They are read in Python, on the chief, when the
    steps are planned and traced. A codec that is `biased` should say so, since it needs error
    feedback.

    **Equality.** Codecs are compared by class and settings, and hashed. Variables that have equal
    codecs travel in one bucket. A subclass that is not a frozen dataclass is compared by its
    attributes.

    Attributes:
      min_bytes: variables smaller than this many bytes are left uncompressed.
      feedback: whether to keep what a payload left out and add it to the next gradient
        (`ErrorFeedback`). None keeps it exactly if the codec is biased.
    """

    min_bytes: int = MIN_BYTES
    feedback: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.min_bytes, bool) or not isinstance(self.min_bytes, int):
            raise errors.ConfigError(
                f"min_bytes={self.min_bytes!r} is not a number of bytes; give a whole number, 0 to "
                "compress variables of any size"
            )
        if self.feedback not in (None, True, False):
            raise errors.ConfigError(
                f"feedback={self.feedback!r} is none of True, False and None; leave it out to have "
                "feedback exactly where the codec is biased"
            )

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(type(self))

    # The contract.

    @abc.abstractmethod
    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        """Makes the payload of a tensor.

        Args:
          tensor: floating, of static shape.
          state: what `initial_state` or the last `encode` returned.
          seed: int32 [2], a different seed for each step and tensor.

        Returns:
          (payload, state): The payload is a tuple of tensors. The state has the shapes and dtypes
          of `initial_state`.
        """

    @abc.abstractmethod
    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        """Makes a tensor of what arrived.

        Args:
          payload: what `encode` returned.
          shape: of the tensor that was encoded.
          dtype: of the tensor that was encoded.

        Returns:
          A tensor of that shape and dtype.
        """

    @abc.abstractmethod
    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        """Predicts the bytes of the payload of such a tensor: an upper bound if they vary."""

    def initial_state(self, shape: Shape) -> State:
        """Makes what `encode` remembers before the first step: a tuple of tensors, often empty."""
        del shape
        return ()

    # Optional traits.

    @property
    def biased(self) -> bool:
        """Whether the expectation of what arrives differs from what was sent."""
        return False

    @property
    def keeps_residual(self) -> bool:
        """Whether later payloads bring what a payload left out, which is error feedback."""
        return False

    @property
    def is_identity(self) -> bool:
        """Whether the payload is the tensor itself, so that both calls can be left out."""
        return False

    @property
    def jit(self) -> bool:
        """Whether XLA can compile `encode` and `decode`: all shapes inside of them are static."""
        return True

    @property
    def matrices(self) -> bool:
        """Whether each variable must be encoded by itself, in its own shape.

        Other codecs are given flat buckets of many variables.
        """
        return False

    @property
    def not_for_weights(self) -> str | None:
        """Why parameters cannot be pulled through this codec; None if they can."""
        return None

    @property
    def tracks_receiver(self) -> bool:
        """Whether what is encoded is the difference from what the receiver holds.

        Only parameters travel so; see `Difference`.
        """
        return False

    @property
    def under_feedback(self) -> "Codec":
        """The form of this codec that `ErrorFeedback` wraps; raises `ConfigError` without one."""
        return self

    def for_rows(self, weights: bool = False) -> "Codec":
        """Chooses the codec for rows of an embedding table, which cannot keep residuals.

        Args:
          weights: whether the rows are parameters instead of gradients. Parameters are rounded to
            nearest: noise that averages out in a sum of gradients would only disturb parameters.

        Returns:
          A codec without state for tensors [rows, width]. The number of rows may be unknown.
        """
        return RowInt8("nearest" if weights else "stochastic", min_bytes=self.min_bytes)

    def error(self, tensor: tf.Tensor, payload: Payload) -> tf.Tensor:
        """Computes `tensor` minus what `payload` says of it.

        `ErrorFeedback` calls this on the worker after `encode`. A codec that knows a shorter way
        than to decode overrides it.
        """
        return tensor - self.decode(payload, tuple(tensor.shape), tensor.dtype)


@dataclasses.dataclass(frozen=True)
class Identity(Codec):
    """Sends the tensor as it is."""

    @property
    def is_identity(self) -> bool:
        return True

    def for_rows(self, weights: bool = False) -> Codec:
        del weights
        return self

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        del seed
        return (tensor,), state

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        return tf.cast(tf.reshape(payload[0], shape), dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        return math.prod(shape) * tf.as_dtype(dtype).size


@dataclasses.dataclass(frozen=True)
class RowInt8(Codec):
    """Eight bits for an element and one float32 scale for a row of an embedding table.

    It is `Int8` with one block for each row, and without feedback: what was left out of a row
    could only be added the next time that a batch looks up the same row.

    A row with a non-finite element arrives non-finite.

    Attributes:
      rounding: "stochastic" (unbiased) or "nearest".
    """

    rounding: str = "stochastic"

    def __post_init__(self) -> None:
        super().__post_init__()
        rounding.require_mode(self.rounding)

    @property
    def biased(self) -> bool:
        return self.rounding == "nearest"

    def for_rows(self, weights: bool = False) -> Codec:
        return dataclasses.replace(self, rounding="nearest") if weights else self

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        rows = tf.cast(tensor, tf.float32)
        return rounding.to_int8(rows, seed if self.rounding == "stochastic" else None), state

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        values, scales = payload
        return tf.cast(tf.cast(values, tf.float32) * scales[:, None], dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        rows, width = shape
        return rows * (width + 4)
