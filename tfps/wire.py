"""How a bucket crosses the network: which codec, in which pieces, in which messages."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfps import errors
from tfps.compression import Codec, Identity

# Below this, what a message costs by itself outweighs copying the tensor into
# another one.
SMALL_BYTES = 64 << 10


def chosen(choice, variable, weights: bool) -> Codec:
    """The codec for a variable's gradients or value.

    Args:
      choice: a codec, None for none, or a function of the variable giving either.
      variable: with `path`, `shape` and `dtype`.
      weights: whether it is for parameters instead of gradients.

    Returns:
      `Identity` for what is not a floating number, or smaller than the codec's
      `min_bytes`.

    Raises:
      ConfigError: it is no codec, or not one for weights.
    """
    per_variable = callable(choice) and not isinstance(choice, Codec)
    codec = choice(variable) if per_variable else choice
    codec = Identity() if codec is None else codec
    name = "pull" if weights else "push"
    if not isinstance(codec, Codec):
        raise errors.ConfigError(
            f"{name} gave {codec!r} for {variable.path}; it must be a codec of tfps.compression, "
            "such as Int8(), or None"
        )
    if weights and codec.not_for_weights:
        raise errors.ConfigError(
            f"pull={codec!r} does not work for parameters: {codec.not_for_weights}; use Float16, "
            "BFloat16 or Int8"
        )
    dtype = tf.as_dtype(variable.dtype)
    small = math.prod(variable.shape) * dtype.size < codec.min_bytes
    return Identity() if small or not dtype.is_floating else codec


@dataclasses.dataclass(frozen=True)
class Channel:
    """The way of one bucket's values in one direction.

    Attributes:
      codec: what the values pass through.
      shape, dtype: of the bucket.
      pieces: shapes of the parts that are encoded by themselves: the whole
        bucket, or its shards where the codec needs matrices.
    """

    codec: Codec
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[int, ...], ...]

    def initial_state(self) -> tuple:
        """What the sender remembers, before the first step."""
        return tuple(self.codec.initial_state(shape) for shape in self.pieces)

    def encode(self, tensor: tf.Tensor, state: tuple, seed: tf.Tensor) -> tuple[tuple, tuple]:
        """(payload, state), a tuple for each piece; to be called on the sender's device."""
        if isinstance(self.codec, Identity):
            return ((tensor,),), state

        # One function for all pieces: those of a shape, such as the matrices of equal
        # layers, are compiled once.
        encode = tf.function(self.codec.encode, jit_compile=self.codec.jit or None, autograph=False)
        sent = [
            encode(part, before, seed + tf.constant([0, i]))
            for i, (part, before) in enumerate(zip(self._split(tensor), state, strict=True))
        ]
        return tuple(payload for payload, _ in sent), tuple(after for _, after in sent)

    def decode(self, payload: tuple) -> tf.Tensor:
        """The bucket's tensor; to be called on the receiver's device."""
        parts = [
            tf.reshape(self.codec.decode(part, shape, self.dtype), [-1])
            for part, shape in zip(payload, self.pieces, strict=True)
        ]
        return tf.reshape(parts[0] if len(parts) == 1 else tf.concat(parts, 0), self.shape)

    @property
    def payload_bytes(self) -> int:
        """Bytes that it sends in a step, as the codec predicts them."""
        return sum(self.codec.payload_bytes(shape, self.dtype) for shape in self.pieces)

    def _split(self, tensor) -> list[tf.Tensor]:
        if len(self.pieces) == 1:
            return [tf.reshape(tensor, self.pieces[0])]
        sizes = [math.prod(shape) for shape in self.pieces]
        parts = tf.split(tf.reshape(tensor, [-1]), sizes)
        return [tf.reshape(t, shape) for t, shape in zip(parts, self.pieces, strict=True)]


def here(tensors):
    """Nested tensors, on the caller's device.

    What a function merely passes on, even through an identity, TensorFlow leaves where
    it was made.
    """
    flat = tf.nest.flatten(tensors)
    return tf.nest.pack_sequence_as(tensors, tf.raw_ops.IdentityN(input=flat)) if flat else tensors


def coalesce(tensors: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], Callable]:
    """Puts small tensors together, so that they share a message.

    Args:
      tensors: all on one device. Those of unknown shape stay by themselves.

    Returns:
      (messages, restore): `restore(messages)`, called on another device, gives
      the tensors back in their order.
    """
    groups: dict[str, list[int]] = {}
    for i, t in enumerate(tensors):
        known = t.shape.is_fully_defined()
        if known and t.shape.num_elements() * t.dtype.size < SMALL_BYTES:
            groups.setdefault(t.dtype.name, []).append(i)
    groups = {dtype: members for dtype, members in groups.items() if len(members) > 1}
    grouped = {i for members in groups.values() for i in members}
    single = [i for i in range(len(tensors)) if i not in grouped]
    shapes = [t.shape for t in tensors]
    messages = [tensors[i] for i in single]
    for members in groups.values():
        messages.append(tf.concat([tf.reshape(tensors[i], [-1]) for i in members], 0))

    def restore(messages):
        back = dict(zip(single, messages, strict=False))
        for members, joined in zip(groups.values(), messages[len(single) :], strict=True):
            parts = tf.split(joined, [shapes[i].num_elements() for i in members])
            back.update((i, tf.reshape(t, shapes[i])) for i, t in zip(members, parts, strict=True))
        return [back[i] for i in range(len(shapes))]

    return messages, restore
