"""Reading out a part of a table that grows: its keys, and all that is kept of them."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfps.embeddings import room, segments
from tfps.embeddings.handles import COUNT, Marks, TableHandles
from tfps.embeddings.layout import Layout, read_marks


class Chosen(NamedTuple):
    """Some keys, those that updates named most often.

    Attributes:
      least: int64 scalar; all that were named more often are chosen.
      ties: int64 scalar, how many are chosen of those that were named just so often.
    """

    least: tf.Tensor
    ties: tf.Tensor

    def among(self, counts: tf.Tensor) -> tf.Tensor:
        """int64 [m]: the positions of the chosen ones in counts, int64 [n]."""
        equal = tf.equal(counts, self.least)
        early = tf.cumsum(tf.cast(equal, tf.int64)) <= self.ties
        return tf.where(tf.logical_or(counts > self.least, tf.logical_and(equal, early)))[:, 0]


def export(
    layout: Layout,
    handles: TableHandles,
    states: Sequence[int | None],
    span: tuple[tf.Tensor, tf.Tensor] | None = None,
    chosen: Chosen | None = None,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The keys of a span of row numbers, with what is noted of them, and their rows.

    Args:
      layout: of the part.
      handles: of the part; nobody may write meanwhile.
      states: which rows: states of the optimizer, or None for the rows themselves.
      span: int64 scalars, the first row number and the one behind the last; None for all.
      chosen: which of the keys; None for all.

    Returns:
      (int64 [n, 4], the columns of `handles.META_WIDTH`; float32 [n, width] for each of
      `states`).
    """
    slots, meta = _owned(layout, handles, span)
    if chosen is not None:
        kept = chosen.among(meta[:, COUNT])
        meta, slots = tf.gather(meta, kept), tf.gather(slots, kept)
    found = []
    for state in states:
        if state is None:
            found.append(layout.rows(handles, slots))
        else:
            family = handles.slots[state]
            found.append(segments.gather(family, layout.ends, tf.float32, slots))
    return meta, found


def counts(layout: Layout, handles: TableHandles, span: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """int64 [n]: how many updates named each key of a span of row numbers; see `export`."""
    return _owned(layout, handles, span)[1][:, COUNT]


def _owned(layout, handles, span):
    """(int64 [n], the row numbers in a span that have a key; int64 [n, 4], their notes)."""
    used = Marks.of(read_marks(handles)).used
    begin, end = (tf.constant(0, tf.int64), used) if span is None else span
    numbers = tf.range(begin, tf.minimum(end, used))
    meta = layout.notes(handles, numbers)
    owned = tf.where(room.is_owned(meta))[:, 0]
    return tf.gather(numbers, owned), tf.gather(meta, owned)
