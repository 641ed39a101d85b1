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
    """Joins small tensors of one dtype, so that they share a message.

    Args:
      tensors: all of them on one device. A tensor of unknown shape stays by itself.

    Returns:
      (messages, restore). `restore(messages)`, called on another device, returns the tensors in
      their order.
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
