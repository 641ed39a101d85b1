"""What a table consists of on one device: resource handles, and what a few numbers count."""

from typing import NamedTuple

import tensorflow as tf

from tfps.embeddings.history import HistoryHandles

# A reference is a row number with the stamp of when a key got it, so a row that was given to
# another key, and back, is not taken for the row that it was.
SLOT_BITS = 40
STAMP_BITS = 22

# The columns of what is noted of each row.
KEY, REF, COUNT, LAST = range(4)
META_WIDTH = 4


class TableHandles(NamedTuple):
    """The resource handles of one part of a table.

    Attributes:
      index: of the hash table from key to reference.
      scratch: of the hash table that is to replace the index; empty unless the index is rebuilt.
      meta: segments of int64 [rows, 4]: key, reference, how many updates named it, the last one.
      values: segments for each variable of which rows consist: one, or codes and scales.
      slots: segments for each state of the optimizer that has rows; in the place of a state that is
        one number for all rows, an empty list.
      free: segments of int64 [rows], numbers of rows that were given back.
      marks: of `Marks`, int64 [13].
      sketch: of uint8 [n], how often keys without a row were seen; None if every key is let in.
      history: which rows change; None if nobody asks for it.
    """

    index: tf.Tensor
    scratch: tf.Tensor
    meta: list[tf.Tensor]
    values: list[list[tf.Tensor]]
    slots: list[list[tf.Tensor]]
    free: list[tf.Tensor]
    marks: tf.Tensor
    sketch: tf.Tensor | None
    history: HistoryHandles | None = None


class Marks(NamedTuple):
    """Counts of one part; int64 scalars.

    Attributes:
      parts: how many segments have rows.
      used: rows that were ever given out; those behind them were not.
      free: how many entries of the list of free rows count.
      erased: keys that were removed from the index since it was made.
      buckets: length of the index's own table.
      moved: how many rows are in the index that is being made, or -1 if none is.
      moving: length of that index's own table.
      hand: where the next search for rows to evict begins.
      swept: where the next search for expired rows begins.
      stamp: of the last key that was let in.
      evicted, expired, refused: how many keys were.
    """

    parts: tf.Tensor
    used: tf.Tensor
    free: tf.Tensor
    erased: tf.Tensor
    buckets: tf.Tensor
    moved: tf.Tensor
    moving: tf.Tensor
    hand: tf.Tensor
    swept: tf.Tensor
    stamp: tf.Tensor
    evicted: tf.Tensor
    expired: tf.Tensor
    refused: tf.Tensor

    @classmethod
    def of(cls, row: tf.Tensor) -> "Marks":
        """From what `row` returned."""
        return cls(*tf.unstack(row, num=len(cls._fields)))

    def row(self) -> tf.Tensor:
        """int64 [13]."""
        return tf.stack([tf.cast(one, tf.int64) for one in self])


class Where(NamedTuple):
    """Where the rows of some keys are, and which of them are to be.

    Attributes:
      keys: int64 [n].
      slots: int64 [n], row numbers; 0 for a key without a row.
      refs: int64 [n], references; -1 for a key without a row.
      fresh: bool [n], whether the row begins anew: what is stored there means nothing.
      new: bool [n], whether the index does not have the key yet.
    """

    keys: tf.Tensor
    slots: tf.Tensor
    refs: tf.Tensor
    fresh: tf.Tensor
    new: tf.Tensor
