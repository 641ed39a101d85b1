"""Tables whose ids are keys of any value: each part has an index from its keys to rows."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.embeddings.handles import TableHandles, Where
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.part import TablePart
from tfps.embeddings.settings import TableSettings
from tfps.store.handles import ServerHandles
from tfps.store.resources import read
from tfps.store.row_storage import Part


class HashRows:
    """A `RowStorage` in which the id of a row is a key, as `embeddings.keys` makes them.

    Attributes:
      parts: see `RowStorage`; one on each ps.
      settings: of the table.
      tables: index of a part -> its functions, once `make` has made the part.
    """

    def __init__(self, settings: TableSettings, parts: Sequence[Part]):
        """Creates nothing on the servers.

        Args:
          settings: of the table.
          parts: one for each ps.
        """
        self.settings, self.parts = settings, list(parts)
        self.tables: dict[int, HashTable] = {}

    def make(
        self,
        bucket: int,
        slot_rows: Sequence[np.ndarray | None],
        noted_from: int | None = None,
    ) -> TablePart:
        """Makes the variables of a part, without keys, on its ps.

        Args:
          bucket: of the part.
          slot_rows: what the states of the optimizer begin with; see `HashTable`.
          noted_from: see `TablePart`.
        """
        k = self.part_of(bucket)
        self.tables[k] = HashTable(self.settings, len(self.parts), slot_rows)
        with tf.device(ps_device(self.parts[k].ps)):
            return TablePart(self.tables[k], noted_from=noted_from)

    def part_of(self, bucket: int) -> int:
        """The index of the part with this bucket."""
        return [part.bucket for part in self.parts].index(bucket)

    def exist(self, ids: tf.Tensor) -> tf.Tensor:
        del ids  # All may be looked up.
        return tf.constant(True)

    def route(self, ids: tf.Tensor) -> tf.Tensor:
        # The low bits are the hash within a part.
        high = tf.bitwise.right_shift(ids, tf.constant(33, tf.int64))
        return tf.cast(tf.math.floormod(high, len(self.parts)), tf.int32)

    def read(
        self, handles: ServerHandles, part: int, ids: tf.Tensor, dtype: tf.DType | str
    ) -> tf.Tensor:
        rows = self.tables[part].read(self._of(handles, part), ids, self._version(handles, part))
        return tf.cast(rows, dtype)

    def insert(self, handles: ServerHandles, part: int, ids: tf.Tensor) -> tuple[Where, tf.Tensor]:
        now = self._version(handles, part) + 1
        return self.tables[part].insert(self._of(handles, part), ids, now)

    def gather(
        self,
        handles: ServerHandles,
        part: int,
        where: Where,
        dtype: tf.DType | str,
        state: int | None = None,
    ) -> tf.Tensor:
        return tf.cast(self.tables[part].gather(self._of(handles, part), where, state), dtype)

    def update(
        self,
        handles: ServerHandles,
        part: int,
        where: Where,
        rows: tf.Tensor,
        state: int | None = None,
    ) -> list[tf.Operation]:
        now = self._version(handles, part) + 1
        return self.tables[part].update(self._of(handles, part), where, rows, now, state)

    def commit(self, handles: ServerHandles, part: int, where: Where) -> list[tf.Operation]:
        now = self._version(handles, part) + 1
        return self.tables[part].commit(self._of(handles, part), where, now)

    def keep_all(self, handles: ServerHandles, part: int) -> list[tf.Operation]:
        return self.tables[part].keep_all(self._of(handles, part))

    def export(self, part: int) -> np.ndarray:
        # The bucket has no rows: those of the table are in its `TablePart`.
        return np.zeros([0], np.int64)

    def _of(self, handles, part) -> TableHandles:
        return handles.store.tables[self.parts[part].bucket]

    def _version(self, handles, part):
        return read(handles.store.versions[self.parts[part].ps], tf.int64, ())
