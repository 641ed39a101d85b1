"""Differences: a parameter server sends what has changed since a worker's last pull."""

import dataclasses

import tensorflow as tf

from tfps import errors
from tfps.compression.adapted import adapted
from tfps.compression.base import MIN_BYTES, Codec, DType, Payload, Shape, State

# Bytes that the copies of all workers may take on a ps, unless the user says otherwise.
MAX_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True)
class Difference(Codec):
    """Sends the encoded difference between the parameters and the worker's copy of them.

    Richtárik et al., "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
    Feedback" (2021); Tang et al., "DoubleSqueeze: Parallel Stochastic Gradient Descent with
    Double-Pass Error-Compensated Compression" (2019).

    A ps remembers what each worker holds. In a pull it encodes the parameters minus that, adds what
    the payload says to what it remembers, and the worker adds the same to its copy. What a payload
    leaves out is still in the next difference, so nothing is forgotten, and no residual is kept. A
    codec that would destroy parameters, such as `OneBit`, does for differences.

    A worker's first pull in an epoch brings the parameters whole, and so does the first one after a
    loss, a restored snapshot, or a change of policy. The copies are not saved anywhere.

    Attributes:
      codec: of the differences. It may be biased; it must not keep a residual.
      refresh: each `refresh`-th pull of a worker is whole; None for no such pull.
      whole_until: pulls are whole until the ps has made this many updates.
      max_bytes: how much memory the copies of all workers may take on a ps: the bytes of the
        parameters there times the number of workers. `tfps.Trainer` refuses to take more.

    Raises:
      ConfigError: the codec is none, keeps a residual, needs matrices, or sends tensors as they
        are; or a number is out of range.
    """

    codec: Codec
    refresh: int | None = None
    whole_until: int = 0
    max_bytes: int = MAX_BYTES
    min_bytes: int = dataclasses.field(default=MIN_BYTES, init=False)
    feedback: bool | None = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        codec = adapted(self.codec)
        if reason := _unfit(codec):
            raise errors.ConfigError(
                f"Difference({codec!r}): {reason}; use a codec without memory, such as OneBit, "
                "Int8 or TopK"
            )
        _require_number("refresh", self.refresh, 1, optional=True)
        _require_number("whole_until", self.whole_until, 0)
        _require_number("max_bytes", self.max_bytes, 1)
        object.__setattr__(self, "codec", codec)
        object.__setattr__(self, "min_bytes", codec.min_bytes)

    @property
    def biased(self) -> bool:
        return self.codec.biased

    @property
    def tracks_receiver(self) -> bool:
        return True

    @property
    def jit(self) -> bool:
        return self.codec.jit

    def for_rows(self, weights: bool = False) -> Codec:
        """See `Codec`; rows of tables travel whole, as with the codec alone."""
        return self.codec.for_rows(weights)

    def initial_state(self, shape: Shape) -> State:
        return self.codec.initial_state(shape)

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        """See `Codec`; the tensor is a difference."""
        return self.codec.encode(tensor, state, seed)

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        """See `Codec`; the tensor is a difference."""
        return self.codec.decode(payload, shape, dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        """See `Codec`; of a pull that is not whole."""
        return self.codec.payload_bytes(shape, dtype)


def _unfit(codec: Codec) -> str | None:
    """Why the codec does not do for differences, or None."""
    if codec.is_identity:
        return "a difference that is sent exactly is as long as the parameters"
    if codec.keeps_residual or codec.tracks_receiver:
        return "the next difference has what a payload left out already"
    if codec.matrices:
        return "products of matrices may round otherwise on another machine, and copies would drift"
    return None


def _require_number(name: str, value: object, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise errors.ConfigError(
            f"Difference({name}={value!r}) is not a whole number of at least {least}; leave "
            f"{name} out for the default"
        )
