"""What one part of a table that grows consists of, and how its rows are read."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfps.embeddings import history, index, row_values, segments, sketch
from tfps.embeddings.handles import Marks, TableHandles
from tfps.embeddings.settings import LARGEST, TableSettings


class Layout:
    """Sizes and forms of one part; it holds no state, and every function takes the handles.

    The caller enters the device of the part.

    Attributes:
      settings: of the table.
      ends: rows with one segment, with two, and so on; see `segments.ends_of`.
      slot_rows: for each state of the optimizer, the row that it begins with, float32 [width], or
        None for a state that is one number for all rows.
      sketch_size: elements of the sketch of sightings; 0 without one.
      first_buckets: of the index while the part has no keys.
    """

    def __init__(
        self,
        settings: TableSettings,
        servers: int = 1,
        slot_rows: Sequence[np.ndarray | None] = (),
    ):
        """Computes the sizes.

        Args:
          settings: of the table.
          servers: how many parts the table has.
          slot_rows: see the attribute.
        """
        self.settings, self.slot_rows = settings, list(slot_rows)
        first = settings.reserved(servers)
        limit = settings.capacity or LARGEST
        self.ends = segments.ends_of(first, limit)
        self.sketch_size = sketch.size_of(first) if settings.admit_after > 1 else 0
        self.first_buckets = index.buckets_for(first)
        self._keep: Callable | None = None

    def rows(self, handles: TableHandles, slots: tf.Tensor) -> tf.Tensor:
        """float32 [n, width]: the rows of these numbers.

        Args:
          handles: of the part.
          slots: int64 [n], row numbers.
        """
        forms = row_values.variables_of(self.settings.row_dtype, self.settings.width)
        kept = [
            segments.gather(family, self.ends, dtype, slots)
            for family, (_, dtype) in zip(handles.values, forms, strict=True)
        ]
        return row_values.decoded(kept, self.settings.row_dtype)

    def notes(self, handles: TableHandles, slots: tf.Tensor) -> tf.Tensor:
        """int64 [n, 4]: what is noted of rows, the columns of `handles.META_WIDTH`; see `rows`."""
        return segments.gather(handles.meta, self.ends, tf.int64, slots)

    def is_expired(self, last: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        """bool [n]: whether keys have been unseen for too long.

        Args:
          last: int64 [n], the updates that named the keys last.
          now: int64 scalar, the number of the last update.
        """
        if self.settings.expire_after is None:
            return tf.zeros_like(last, tf.bool)
        return now - last > self.settings.expire_after

    def contents(self, handles: TableHandles, slots: tf.Tensor) -> list[tf.Tensor]:
        """All that a snapshot has of rows, whether they have a key or not.

        Args:
          handles: of the part.
          slots: int64 [n], row numbers.

        Returns:
          [int64 [n, 4], the columns of `handles.META_WIDTH`; float32 [n, width], the rows; the same
          for each state of the optimizer that has rows].
        """
        found = [self.notes(handles, slots)]
        found.append(self.rows(handles, slots))
        kept = [family for family in handles.slots if family]
        return found + [segments.gather(f, self.ends, tf.float32, slots) for f in kept]

    def form(self, handles: TableHandles) -> history.Form:
        """The form of the table's history."""
        states = [row for row in self.slot_rows if row is not None]
        dtypes = [tf.int64, *[tf.float32] * (1 + len(states))]
        return history.Form(self.ends, dtypes, lambda slots: self.contents(handles, slots))

    def kept(self, handles: TableHandles, slots: tf.Tensor) -> list[tf.Tensor]:
        """What has to be over before rows change; see `history.keep`, and `rows`."""
        if handles.history is None:
            return []
        if self._keep is None:
            # It is needed in several places, and takes time to be traced.
            self._keep = tf.function(self._keep_rows, autograph=False)
        return [self._keep(handles, slots)]

    def _keep_rows(self, handles, slots):
        done = history.keep(handles.history, self.form(handles), slots)
        with tf.control_dependencies(done):
            return tf.constant(True)

    def first_marks(self) -> list[int]:
        """`Marks` of a part without keys."""
        marks = Marks(**dict.fromkeys(Marks._fields, 0))
        return list(marks._replace(parts=1, moved=-1, buckets=self.first_buckets))


def read_marks(handles: TableHandles) -> tf.Tensor:
    """int64 [k]: what the part counts; see `Marks`."""
    return tf.raw_ops.ReadVariableOp(resource=handles.marks, dtype=tf.int64)


def write_marks(handles: TableHandles, row: tf.Tensor) -> tf.Operation | None:
    """Replaces what the part counts; returns the operation, or None outside of a graph."""
    return tf.raw_ops.AssignVariableOp(resource=handles.marks, value=row)


def written(done: Sequence[tf.Operation | None]) -> list[tf.Operation]:
    """The operations among these; outside of a graph there are none."""
    return [one for one in done if one is not None]
