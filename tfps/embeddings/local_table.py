"""A table in the process of the model: what a layer without servers looks rows up in."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfps.embeddings import exports
from tfps.embeddings.handles import COUNT, KEY, LAST, REF
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.index import slots_of
from tfps.embeddings.part import TablePart
from tfps.embeddings.settings import TableSettings

# A table whose rows have at most so many bytes is whole in the process of the model.
LOCAL_BYTES = 64 << 20

# Bytes of the rows of any other table in the process of the model. Its slots, its keys and their
# index take twice as much again, and the chief of a large job has other things to hold.
PART_BYTES = 16 << 20


class Keys(NamedTuple):
    """The keys of a table in the order of their rows.

    Attributes:
      keys: int64 [n].
      slots: int64 [n], row numbers.
      counts: int64 [n], how many updates named each key.
      lasts: int64 [n], the number of the last one.
    """

    keys: np.ndarray
    slots: np.ndarray
    counts: np.ndarray
    lasts: np.ndarray


def rows_here(settings: TableSettings) -> int:
    """How many rows a table has in the process of the model."""
    row_bytes, rows = 4 * settings.width, settings.capacity or settings.expected
    if rows * row_bytes <= LOCAL_BYTES:
        return rows
    return max(1, min(LOCAL_BYTES, PART_BYTES) // row_bytes)


class LocalTable(tf.Module):
    """The keys of a Keras variable's rows.

    Attributes:
      is_replaced: whether the keys were replaced as a whole since somebody set this to false.
    """

    def __init__(self, settings: TableSettings, embeddings: keras.Variable):
        """Makes a table without keys.

        Args:
          settings: of the layer.
          embeddings: float32 [rows, width].
        """
        super().__init__()
        rows = int(embeddings.shape[0])
        here = settings._replace(expected=rows, capacity=rows, row_dtype="float32")
        with tf.init_scope(), tf.device("CPU:0"):
            self._part = TablePart(HashTable(here), embeddings.value)
            self._clock = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._table, self._rows = self._part.table, rows
        self.is_replaced = False

    def read(self, keys: tf.Tensor) -> tf.Tensor:
        """float32 [n, width]: rows of keys; nothing is let in."""
        return self._table.read(self._part.handles, keys, self._clock.read_value())

    def trained(self, embeddings: tf.Variable, keys: tf.Tensor) -> tf.Tensor:
        """`read` in a step of training: keys are let in, and gradients reach their rows.

        Args:
          embeddings: the variable with the rows.
          keys: int64 [n].
        """
        handles, table = self._part.handles, self._table
        unique, positions = tf.unique(keys)
        now = self._clock.assign_add(1, read_value=True)
        where, taken = table.insert(handles, unique, now)
        first = table.gather(handles, where)
        written = table.update(handles, where, first, now)
        with tf.control_dependencies([one for one in written if one is not None]):
            done = table.commit(handles, where, now)
        with tf.control_dependencies(done):
            rows = tf.gather(embeddings, where.slots)
        initial = table.settings.initial.rows(unique, table.settings.width)
        rows = tf.tensor_scatter_nd_update(initial, taken[:, None], rows)
        return tf.gather(rows, positions)

    @property
    def clock(self) -> int:
        """How many steps of training there were."""
        return int(self._clock.numpy())

    def keys(self) -> Keys:
        """All keys."""
        meta, _ = exports.export(self._table, self._part.handles, [])
        meta = meta.numpy()
        slots = slots_of(tf.constant(meta[:, REF])).numpy()
        return Keys(meta[:, KEY], slots, meta[:, COUNT], meta[:, LAST])

    def replace(self, keys: Keys, clock: int) -> None:
        """Replaces all keys; the rows stay as they are.

        Args:
          keys: with row numbers below that of the rows.
          clock: see the attribute.
        """
        self._clock.assign(clock)
        self._part.replace(keys.keys, keys.slots, keys.counts, keys.lasts)
