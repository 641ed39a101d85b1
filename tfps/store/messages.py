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
