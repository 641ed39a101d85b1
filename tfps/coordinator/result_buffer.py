"""Small results of scheduled functions: rows of a buffer on the worker that computed them.

A tensor that a function returns costs a second message when nobody holds the tensor any more: the
message that frees it on the worker. A row costs none: it is written again by another function.
"""

import functools
import threading
import weakref

import numpy as np
import tensorflow as tf

from tfps import _tf
from tfps.cluster.byte_row import ByteRow

# Rows of a buffer. When all rows are taken, the results in them are copied elsewhere together.
_ROWS = 64

# The place of a result, an argument of a function: the handle of a buffer, and a row's index.
PLACE = (tf.TensorSpec([], tf.resource), tf.TensorSpec([], tf.int64))


def store(packing: ByteRow, outputs: list[tf.Tensor], buffer: tf.Tensor, index: tf.Tensor) -> None:
    """In a graph on the buffer's worker, writes outputs of the layout to a place, see `PLACE`."""
    with tf.device("/device:CPU:0"):
        row = packing.pack(outputs)
        tf.raw_ops.ResourceScatterUpdate(resource=buffer, indices=index, updates=row)


class Results:
    """The buffers of a lane, one for each width of rows."""

    def __init__(self, device: str):
        """Has no buffer yet.

        Args:
          device: where the buffers will be, a CPU of the worker.
        """
        self._device = device
        self._indices: list[tf.Tensor] = []  # The indices of rows, int64 scalars on the worker.
        self._buffers: dict[int, _Buffer] = {}

    def row(self, packing: ByteRow) -> "Row":
        """Returns a free row for one result. Only the lane's own thread may call this."""
        buffer = self._buffers.get(packing.width)
        if buffer is None:
            with tf.device(self._device):
                self._indices = self._indices or tf.unstack(tf.range(_ROWS, dtype=tf.int64))
                buffer = self._buffers[packing.width] = _Buffer(packing.width, self._indices)
        return buffer.take(packing)

    def abandon(self, packing: ByteRow) -> None:
        """Forgets a buffer after an error: the failed call may still write its row at any time."""
        del self._buffers[packing.width]


class Row:
    """A row with one result, in the buffer at first and in a copy of the buffer later.

    Attributes:
      written: whether the result is in the row.
    """

    __slots__ = ("__weakref__", "_buffer", "_copy", "_index", "_packing", "written")

    def __init__(self, buffer: "_Buffer", index: int, packing: ByteRow):
        """Describes row `index` of a buffer, whose layout is `packing`."""
        self.written = False
        self._buffer = buffer
        self._index = index
        self._packing = packing
        self._copy: _Copy | None = None

    def place(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the row's place: tensors on the worker, see `PLACE`."""
        return self._buffer.handle, self._buffer.indices[self._index]

    @property
    def is_on_chief(self) -> bool:
        """Whether `tensors` needs the worker no more."""
        return self._copy is not None and self._copy.is_on_chief

    def bring(self) -> None:
        """Copies the result to the chief, and all others of the buffer with it."""
        with tf.init_scope(), tf.device(_tf.chief_device()):
            self._on_chief()

    def _on_chief(self) -> np.ndarray:
        if self._copy is None:
            self._buffer.copy()
        assert self._copy is not None  # `_Buffer.copy` calls `move` of every written row.
        return self._copy.on_chief()[self._index]

    def tensors(self) -> list[tf.Tensor]:
        """Returns the result as tensors on the chief."""
        # The caller may be tracing a graph, which has nothing to do with the copy.
        with tf.init_scope(), tf.device(_tf.chief_device()):
            row = self._on_chief()
            return [tf.constant(x) for x in self._packing.unpack_numpy(row)]

    def move(self, copy: "_Copy") -> None:
        """Notes that the result is in the copy too, and gives the row back to the buffer."""
        self._copy = copy
        self._buffer.release(self._index)


class _Buffer:
    """A uint8 `[_ROWS, width]` variable on a worker.

    Attributes:
      handle: the variable's handle.
      indices: the indices of the rows, int64 scalars on the worker.
    """

    def __init__(self, width: int, indices: list[tf.Tensor]):
        """Makes the variable on the device in scope."""
        self._variable = tf.Variable(tf.zeros([_ROWS, width], tf.uint8), trainable=False)
        self.handle = self._variable.handle
        self.indices = indices
        self._free = list(range(_ROWS))
        self._taken: list[weakref.ref[Row] | None] = [None] * _ROWS
        self._copying = threading.Lock()

    def take(self, packing: ByteRow) -> Row:
        """Returns a row whose result nobody needs any more."""
        while not self._free:
            self.copy()
        index = self._free.pop()
        row = Row(self, index, packing)
        # No `__del__`: while one runs, the row can still be found, and given back twice.
        self._taken[index] = weakref.ref(row, functools.partial(self.release, index))
        return row

    def release(self, index: int, _=None) -> None:
        """Takes a row back. It takes no lock, since the garbage collector may call it anywhere."""
        self._taken[index] = None
        self._free.append(index)

    def copy(self) -> None:
        """Copies the written rows, on the worker, and takes them back."""
        with self._copying:
            taken = [ref() for ref in self._taken if ref is not None]
            rows = [row for row in taken if row is not None and row.written]
            copy = _Copy(tf.raw_ops.ReadVariableOp(resource=self.handle, dtype=tf.uint8))
            for row in rows:
                row.move(copy)


class _Copy:
    """A copy of a buffer: on the worker until a row is asked for, and on the chief afterwards."""

    def __init__(self, remote: tf.Tensor):
        self._rows: tf.Tensor | np.ndarray = remote
        self._lock = threading.Lock()

    @property
    def is_on_chief(self) -> bool:
        """Whether the copy is on the chief."""
        return isinstance(self._rows, np.ndarray)

    def on_chief(self) -> np.ndarray:
        """Returns all rows, uint8 `[_ROWS, width]`."""
        with self._lock:
            if not isinstance(self._rows, np.ndarray):
                self._rows = self._rows.numpy()
            return self._rows
