"""The variables of one part of a table."""

import numpy as np
import tensorflow as tf

from tfps.embeddings import index, row_values, segments
from tfps.embeddings.handles import META_WIDTH, Marks, TableHandles
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.history import History
from tfps.embeddings.index import insert, refs_of
from tfps.embeddings.keys import REMOVED
from tfps.embeddings.segments import Segments


class TablePart(tf.Module):
    """A part without keys, on the device on which the constructor ran.

    Attributes:
      table: its functions.
    """

    def __init__(
        self, table: HashTable, values: tf.Variable | None = None, noted_from: int | None = None
    ):
        """Makes the variables.

        Args:
          table: the functions.
          values: a variable in which the rows are kept, float32 [rows, width]; None for new ones.
          noted_from: number of the cut from which it is noted which rows change; None if nobody
            asks for it.
        """
        super().__init__()
        self.table = table
        settings, ends = table.settings, table.ends
        self._values = (
            [[values]]
            if values is not None
            else [
                Segments(ends, shape, dtype).parts
                for shape, dtype in row_values.variables_of(settings.row_dtype, settings.width)
            ]
        )
        self._slots = [
            [] if row is None else Segments(ends, (settings.width,), tf.float32).parts
            for row in table.slot_rows
        ]
        self._meta = Segments(ends, (META_WIDTH,), tf.int64).parts
        self._index, self._scratch = index.make(table.first_buckets), index.make(index.SMALLEST)
        self._free = Segments(ends, (), tf.int64).parts
        self._marks = tf.Variable(tf.constant(table.first_marks(), tf.int64), trainable=False)
        self._sketch = None
        if table.sketch_size:
            self._sketch = tf.Variable(tf.zeros([table.sketch_size], tf.uint8), trainable=False)
        self._history = None
        if noted_from is not None:
            dtypes = table.form(self.handles).dtypes
            self._history = History(ends, dtypes, noted_from)

    @property
    def handles(self) -> TableHandles:
        """The resource handles."""
        return TableHandles(
            index=self._index.resource_handle,
            scratch=self._scratch.resource_handle,
            meta=_handles(self._meta),
            values=[_handles(family) for family in self._values],
            slots=[_handles(family) for family in self._slots],
            free=_handles(self._free),
            marks=self._marks.handle,
            sketch=None if self._sketch is None else self._sketch.handle,
            history=None if self._history is None else self._history.handles,
        )

    @property
    def marks(self) -> dict[str, int]:
        """What `Marks` counts, by name."""
        return dict(zip(Marks._fields, self._marks.numpy().tolist(), strict=True))

    def replace(
        self, keys: np.ndarray, slots: np.ndarray, counts: np.ndarray, lasts: np.ndarray
    ) -> None:
        """Replaces all keys of a part with one segment; the rows stay as they are.

        Args:
          keys, slots, counts, lasts: int64 [n], the keys with the numbers of their rows and what is
            noted of them.
        """
        handles, rows = self.handles, self.table.ends[0]
        self.table.clear(handles)
        used = int(slots.max()) + 1 if len(slots) else 0
        meta = np.tile(np.array([[REMOVED, -1, 0, 0]], np.int64), [rows, 1])
        refs = refs_of(tf.constant(slots), tf.zeros_like(slots))
        meta[slots] = np.stack([keys, refs.numpy(), counts, lasts], 1)
        self._meta[0].assign(meta)
        is_free: np.ndarray = np.ones(used, bool)
        is_free[slots] = False
        free = np.flatnonzero(is_free)
        places = tf.range(len(free), dtype=tf.int64)
        segments.scatter(handles.free, self.table.ends, places, tf.constant(free))
        marks = Marks(*self._marks.numpy())._replace(used=used, free=len(free))
        self._marks.assign(list(marks))
        insert(handles, marks, tf.constant(keys), refs)


def _handles(family):
    return [variable.handle for variable in family]
