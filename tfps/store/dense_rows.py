"""Tables whose ids are 0, 1, 2 and so on: each part holds a range of them, row by row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfps.embeddings import history
from tfps.store.handles import DenseHandles, ServerHandles
from tfps.store.resources import read_rows, write_rows
from tfps.store.row_pieces import DenseContents
from tfps.store.row_storage import Part


class RowRange(NamedTuple):
    """The ids of one part.

    Attributes:
      part: the bucket that holds the rows.
      begin, end: the first id, and the one after the last.
    """

    part: Part
    begin: int
    end: int


class DenseRows:
    """A `RowStorage` in which the id of a row is its number in the whole table.

    Attributes:
      parts: see `RowStorage`; by their ids.
      contents: bucket -> what its rows are, for parts of which it is noted which rows change.
    """

    def __init__(self, ranges: Sequence[RowRange]):
        """Orders the parts by their ids.

        Args:
          ranges: ids of each part; together they are 0 to the number of rows, each id once.
        """
        self._ranges = sorted(ranges, key=lambda r: (r.begin, r.end))
        self.parts: Sequence[Part] = [r.part for r in self._ranges]
        self.contents: dict[int, DenseContents] = {}

    def exist(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all(tf.logical_and(ids >= 0, ids < self._ranges[-1].end))

    def route(self, ids: tf.Tensor) -> tf.Tensor:
        part = tf.zeros_like(ids, tf.int32)
        for r in self._ranges[1:]:
            part += tf.cast(ids >= r.begin, tf.int32)
        return part

    def read(
        self, handles: ServerHandles, part: int, ids: tf.Tensor, dtype: tf.DType | str
    ) -> tf.Tensor:
        handle = handles.store.values[self.parts[part].bucket]
        return read_rows(handle, dtype, ids - self._ranges[part].begin)

    def insert(self, handles: ServerHandles, part: int, ids: tf.Tensor) -> tuple[tf.Tensor, None]:
        where = ids - self._ranges[part].begin  # Every id has a row from the start.
        with tf.control_dependencies(self._kept(handles, part, where)):
            return tf.identity(where), None

    def keep_all(self, handles: ServerHandles, part: int) -> list[tf.Operation]:
        """To be run before all rows of a part are replaced, if it is noted which rows change.

        Args:
          handles, part: see `read`.

        Returns:
          Operations that have to be over before.
        """
        begin, end = self._ranges[part].begin, self._ranges[part].end
        return self._kept(handles, part, tf.range(tf.constant(end - begin, tf.int64)))

    def _kept(self, handles, part, rows):
        bucket = self.parts[part].bucket
        if (contents := self.contents.get(bucket)) is None:
            return []
        own: DenseHandles = handles.store.histories[bucket]
        return history.keep(own.history, contents.form(own), rows)

    def gather(
        self,
        handles: ServerHandles,
        part: int,
        where: tf.Tensor,
        dtype: tf.DType | str,
        state: int | None = None,
    ) -> tf.Tensor:
        return read_rows(self._handle(handles, part, state), dtype, where)

    def update(
        self,
        handles: ServerHandles,
        part: int,
        where: tf.Tensor,
        rows: tf.Tensor,
        state: int | None = None,
    ) -> list[tf.Operation]:
        return [write_rows(self._handle(handles, part, state), where, rows)]

    def commit(self, handles: ServerHandles, part: int, where: tf.Tensor) -> list[tf.Operation]:
        del handles, part, where
        return []

    def export(self, part: int) -> np.ndarray:
        return np.arange(self._ranges[part].begin, self._ranges[part].end)

    def _handle(self, handles, part, state):
        bucket = self.parts[part].bucket
        if state is None:
            return handles.store.values[bucket]
        return handles.store.row_slots[bucket][state]
