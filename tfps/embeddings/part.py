"""The variables of one part of a table."""

from collections.abc import Callable

import tensorflow as tf

from tfps.embeddings import index, row_values
from tfps.embeddings.handles import META_WIDTH, Marks, TableHandles
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.segments import Segments


class TablePart:
    """A part without keys, on the device on which the constructor ran.

    Attributes:
      table: its functions.
    """

    def __init__(self, table: HashTable, values: tf.Variable | None = None):
        """Makes the variables.

        Args:
          table: the functions.
          values: a variable in which the rows are kept, float32 [rows, width]; None for new ones.
        """
        self.table = table
        settings, ends = table.settings, table.ends
        self._values = [[values]] if values is not None else [
            Segments(ends, shape, dtype).parts
            for shape, dtype in row_values.variables_of(settings.row_dtype, settings.width)
        ]
        self._slots = [
            [] if row is None else Segments(ends, (settings.width,), tf.float32).parts
            for row in table.slot_rows
        ]
        self._meta = Segments(ends, (META_WIDTH,), tf.int64).parts
        self._index, self._scratch = index.make(table.first_buckets), index.make(index.SMALLEST)
        self._free = tf.Variable(tf.zeros([0], tf.int64), trainable=False, shape=[None])
        zero = dict.fromkeys(Marks._fields, 0)
        first = Marks(**zero)._replace(moved=-1, buckets=table.first_buckets)
        self._marks = tf.Variable(tf.constant(list(first), tf.int64), trainable=False)
        self._sketch = None
        if table.sketch_size:
            self._sketch = tf.Variable(tf.zeros([table.sketch_size], tf.uint8), trainable=False)

    @property
    def handles(self) -> TableHandles:
        """The resource handles."""
        return TableHandles(
            index=self._index.resource_handle,
            scratch=self._scratch.resource_handle,
            meta=_handles(self._meta),
            values=[_handles(family) for family in self._values],
            slots=[_handles(family) for family in self._slots],
            free=self._free.handle,
            marks=self._marks.handle,
            sketch=None if self._sketch is None else self._sketch.handle,
        )

    @property
    def marks(self) -> dict[str, int]:
        """What `Marks` counts, by name."""
        return dict(zip(Marks._fields, self._marks.numpy().tolist(), strict=True))

    def traced(self, function: Callable) -> Callable:
        """A function of the handles and tensors, traced as it is called."""
        return tf.function(function, autograph=False, jit_compile=False)


def _handles(family):
    return [variable.handle for variable in family]
