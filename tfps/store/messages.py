"""How tensors cross the network between two tasks: in which messages, and to which device."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# For a tensor smaller than this, a message of its own costs more than copying the tensor into a
# message that it shares.
SMALL_BYTES = 64 << 10


def here(tensors: Any) -> Any:
    """Nested tensors, on the caller's device.

    TensorFlow leaves a tensor that a function merely passes on, even through an identity, on the
    device where it was made. An `IdentityN` moves it.
    """
    flat = tf.nest.flatten(tensors)
    return tf.nest.pack_sequence_as(tensors, tf.raw_ops.IdentityN(input=flat)) if flat else tensors


def coalesce(tensors: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], Callable]:
    """Joins small tensors, so that they share a message.

    Tensors of one dtype are joined as they are, and scalars, whatever their dtypes, as bytes. (A
    model whose weights came as bytes was seen to round differently from plain Keras.)

    Args:
      tensors: all of them on one device. A tensor of unknown shape, or of strings, stays by itself.

    Returns:
      (messages, restore). `restore(messages)`, called on another device, returns the tensors in
      their order.
    """
    groups: dict[str, list[int]] = {}
    for i, t in enumerate(tensors):
        if _is_small(t):
            groups.setdefault("scalars" if t.shape.rank == 0 else t.dtype.name, []).append(i)
    joined = [members for members in groups.values() if len(members) > 1]
    grouped = {i for members in joined for i in members}
    single = [i for i in range(len(tensors)) if i not in grouped]
    forms = [(t.dtype, t.shape) for t in tensors]
    messages = [tensors[i] for i in single]
    for members in joined:
        parts = [tf.reshape(tensors[i], [-1]) for i in members]
        mixed = len({forms[i][0] for i in members}) > 1
        messages.append(tf.concat([_bytes(t) for t in parts] if mixed else parts, 0))

    def restore(messages):
        back = dict(zip(single, messages, strict=False))
        for members, message in zip(joined, messages[len(single) :], strict=True):
            mixed = len({forms[i][0] for i in members}) > 1
            sizes = [forms[i][1].num_elements() for i in members]
            if mixed:
                sizes = [_width(forms[i][0]) for i in members]
            for i, part in zip(members, tf.split(message, sizes), strict=True):
                dtype, shape = forms[i]
                back[i] = tf.reshape(_of_bytes(part, dtype) if mixed else part, shape)
        return [back[i] for i in range(len(forms))]

    return messages, restore


def join(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Joins tensors of any length, so that those of one dtype share a message.

    Args:
      tensors: all of them on one device, of known ranks.

    Returns:
      Messages for `separate`, on another device. The first of them, int32, has the shapes. Where
      that would not make them fewer, they are the tensors.
    """
    if not _is_worth_joining(tensors):
        return list(tensors)
    flat = [tf.reshape(t, [-1]) for t in tensors]
    shapes = tf.concat([tf.shape(t) for t in tensors], 0)
    dtypes = _dtypes(tensors)
    return [shapes, *(tf.concat([t for t in flat if t.dtype == one], 0) for one in dtypes)]


def separate(
    messages: Sequence[tf.Tensor], like: Sequence[tf.Tensor | tf.TensorSpec]
) -> list[tf.Tensor]:
    """The tensors that `join` has joined.

    Args:
      messages: of `join`.
      like: of the dtypes and the static shapes of what it was given.
    """
    if not _is_worth_joining(like):
        return list(messages)
    shapes = tf.split(messages[0], [one.shape.rank for one in like])
    back: dict[int, tf.Tensor] = {}
    for dtype, message in zip(_dtypes(like), messages[1:], strict=True):
        members = [k for k, one in enumerate(like) if one.dtype == dtype]
        sizes = tf.stack([tf.reduce_prod(shapes[k]) for k in members])
        for k, part in zip(members, tf.split(message, sizes, num=len(members)), strict=True):
            back[k] = tf.reshape(part, shapes[k])
            back[k].set_shape(like[k].shape)
    return [back[k] for k in range(len(like))]


def _is_worth_joining(tensors: Sequence[tf.Tensor | tf.TensorSpec]) -> bool:
    return 1 + len(_dtypes(tensors)) < len(tensors)


def _dtypes(tensors: Sequence[tf.Tensor | tf.TensorSpec]) -> list[tf.DType]:
    return list(dict.fromkeys(t.dtype for t in tensors))


def _is_small(t: tf.Tensor) -> bool:
    fixed = t.dtype.is_floating or t.dtype.is_integer or t.dtype.is_bool
    if not (fixed and t.shape.is_fully_defined()):
        return False
    return t.shape.num_elements() * t.dtype.size < SMALL_BYTES


def _width(dtype: tf.DType) -> int:
    """Bytes of an element."""
    return 1 if dtype.is_bool else dtype.size


def _bytes(flat: tf.Tensor) -> tf.Tensor:
    if flat.dtype.is_bool:
        return tf.cast(flat, tf.uint8)
    return tf.reshape(tf.bitcast(flat, tf.uint8), [-1])


def _of_bytes(flat: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if dtype.is_bool:
        return tf.cast(flat, tf.bool)
    return tf.bitcast(tf.reshape(flat, [-1, dtype.size]) if dtype.size > 1 else flat, dtype)
