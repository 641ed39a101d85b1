"""The letter that a ps gets of a push: what is in it, and how a ps opens it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.store.messages import coalesce, join, separate
from tfps.store.tables import SentRows


class Form(NamedTuple):
    """What a letter consists of after its header, as the step's trace has found.

    Attributes:
      specs: of the tensors.
      records: how many of the tensors, the first ones, are for the ledger.
      dtypes: of the other tensors before `_carried`.
      restore: splits them; see `coalesce`.
      structure: nested as the payloads and the rows are.
    """

    specs: list[tf.TensorSpec]
    records: int
    dtypes: list[tf.DType]
    restore: Callable
    structure: Any

    def opened(self, messages: Sequence[tf.Tensor]) -> tuple[dict[int, tuple], dict[int, SentRows]]:
        """(payloads, rows) of a letter's tensors after the header; see `push.Push`."""
        messages = messages[self.records :]
        given = [_restored(t, d) for t, d in zip(messages, self.dtypes, strict=True)]
        return tf.nest.pack_sequence_as(self.structure, self.restore(given))


def written(
    p: int,
    header: tf.Tensor,
    payloads: Mapping[int, tuple],
    rows: Mapping[int, SentRows],
    records: Sequence[tf.Tensor],
) -> tuple[list[tf.Tensor], Form]:
    """Writes a letter. All that is small shares a tensor, because a message has a price of its own.

    Args:
      p: index of the ps.
      header: the header's row.
      payloads, rows, records: what the ps is to get; see `push.Push`.

    Returns:
      (tensors on the ps, the header's row first; the form of the others).
    """
    fixed, of_rows = tf.nest.flatten(payloads), tf.nest.flatten(rows)
    count, forms = len(fixed), [_spec(t) for t in of_rows]
    messages, split = coalesce([*fixed, *join(of_rows)])

    def restore(messages):
        back = split(messages)
        return [*back[:count], *separate(back[count:], forms)]

    dtypes = [t.dtype for t in messages]
    with tf.device(ps_device(p)):
        # Here, before any branch: what a branch takes in, TensorFlow asks for where it comes
        # from, and the worker's answer would wait behind all that is under way.
        carried = map(_carried, [*records, *messages])
        tensors = tf.nest.map_structure(tf.identity, [header, *carried])
    structure = tf.nest.map_structure(_spec, (payloads, rows))
    specs = [_spec(t) for t in tensors[1:]]
    return tensors, Form(specs, len(records), dtypes, restore, structure)


def _spec(t: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(t.shape, t.dtype)


def _carried(t: tf.Tensor) -> tf.Tensor:
    """A tensor, on its ps, as the loop can pass it on.

    TensorFlow has no conditionals for 8-bit floats. Every one of them is a float16 too.
    """
    return tf.cast(t, tf.float16) if t.dtype.name.startswith("float8") else t


def _restored(t: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The inverse of `_carried`."""
    return t if t.dtype == dtype else tf.cast(t, dtype)
