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

    Args:
      tensors: all of them on one device. A tensor of unknown shape, or of strings, stays by itself.

    Returns:
      (messages, restore). `restore(messages)`, called on another device, returns the tensors in
      their order.
    """
    small = [i for i, t in enumerate(tensors) if _is_small(t)]
    small = small if len(small) > 1 else []
    single = [i for i in range(len(tensors)) if i not in small]
    forms = [(t.dtype, t.shape) for t in tensors]
    # Tensors of one dtype are joined as they are, others as bytes.
    mixed = len({forms[i][0] for i in small}) > 1
    messages = [tensors[i] for i in single]
    if small:
        parts = [tf.reshape(tensors[i], [-1]) for i in small]
        messages.append(tf.concat([_bytes(t) for t in parts] if mixed else parts, 0))

    def restore(messages):
        back = dict(zip(single, messages, strict=False))
        if small:
            counts = [forms[i][1].num_elements() for i in small]
            sizes = [_width(forms[i][0]) for i in small] if mixed else [1] * len(small)
            parts = tf.split(
                messages[-1], [n * size for n, size in zip(counts, sizes, strict=True)]
            )
            for i, part in zip(small, parts, strict=True):
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
