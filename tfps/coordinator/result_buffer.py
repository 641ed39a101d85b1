"""Small results of scheduled functions: rows of a buffer on the worker that computed them.

A tensor that a function returns costs a second message when nobody holds it any more, which frees
it on the worker. A row is just written again.
"""

import functools
import threading
import weakref

import numpy as np
import tensorflow as tf

from tfps import _tf
from tfps.cluster.byte_row import ByteRow

# Results that are held at a time: when all rows are taken, they are copied elsewhere together.
_ROWS = 64

# What tells a function where to put its result: a buffer, and the index of a row.
PLACE = (tf.TensorSpec([], tf.resource), tf.TensorSpec([], tf.int64))


def store(packing: ByteRow, outputs: list[tf.Tensor], buffer: tf.Tensor, index: tf.Tensor) -> None:
    """Writes outputs to a place, in a graph that runs on the buffer's worker."""
    with tf.device("/device:CPU:0"):
        row = packing.pack(outputs)
        tf.raw_ops.ResourceScatterUpdate(resource=buffer, indices=index, updates=row)


class Results:
    """The buffers of a lane, by width."""

    def __init__(self, device: str):
        """Makes none yet.

        Args:
          device: where they will be, a CPU of the worker.
        """
        self._device = device
        self._indices: list[tf.Tensor] = []  # Of rows, scalars on the worker.
        self._buffers: dict[int, _Buffer] = {}

    def row(self, packing: ByteRow) -> "Row":
        """A place for one result; to be called by the lane's own thread."""
        buffer = self._buffers.get(packing.width)
        if buffer is None:
            with tf.device(self._device):
                self._indices = self._indices or tf.unstack(tf.range(_ROWS, dtype=tf.int64))
                buffer = self._buffers[packing.width] = _Buffer(packing.width, self._indices)
        return buffer.take(packing)

    def abandon(self, packing: ByteRow) -> None:
        """After an error: the call may go on, on the worker, and write its row at any time."""
        del self._buffers[packing.width]


class Row:
    """One result: in the buffer, or in a copy of it after a while.

    Attributes:
      written: whether the result is there.
    """

    __slots__ = ("__weakref__", "_buffer", "_copy", "_index", "_packing", "written")

    def __init__(self, buffer: "_Buffer", index: int, packing: ByteRow):
        self.written = False
        self._buffer = buffer
        self._index = index
        self._packing = packing
        self._copy: _Copy | None = None

    def place(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Tensors on the worker as in `PLACE`."""
        return self._buffer.handle, self._buffer.indices[self._index]

    def tensors(self) -> list[tf.Tensor]:
        """The result, copied to the chief."""
        # A graph that is being traced has nothing to do with it.
        with tf.init_scope(), tf.device(_tf.chief_device()):
            if self._copy is None:
                self._buffer.copy()
            rows = self._copy.on_chief()
            return [tf.constant(x) for x in self._packing.unpack_numpy(rows[self._index])]

    def move(self, copy: "_Copy") -> None:
        """Notes that it is in the copy, too, and need not stay in the buffer."""
        self._copy = copy
        self._buffer.release(self._index)


class _Buffer:
    """uint8 `[_ROWS, width]` on a worker.

    Attributes:
      handle: of the variable.
      indices: of the rows, scalars on the worker.
    """

    def __init__(self, width: int, indices: list[tf.Tensor]):
        """Makes it on the device in scope."""
        self._variable = tf.Variable(tf.zeros([_ROWS, width], tf.uint8), trainable=False)
        self.handle = self._variable.handle
        self.indices = indices
        self._free = list(range(_ROWS))
        self._taken: list[weakref.ref[Row] | None] = [None] * _ROWS
        self._copying = threading.Lock()

    def take(self, packing: ByteRow) -> Row:
        """A row that nobody needs."""
        while not self._free:
            self.copy()
        index = self._free.pop()
        row = Row(self, index, packing)
        # No `__del__`: while one runs, the row can still be found, and given back twice.
        self._taken[index] = weakref.ref(row, functools.partial(self.release, index))
        return row

    def release(self, index: int, _=None) -> None:
        """Takes a row back. The garbage collector calls it at any line, so it takes no lock."""
        self._taken[index] = None
        self._free.append(index)

    def copy(self) -> None:
        """Copies what has been written, on the worker, and takes the rows back."""
        with self._copying:
            rows = [ref and ref() for ref in self._taken]
            rows = [row for row in rows if row is not None and row.written]
            copy = _Copy(tf.raw_ops.ReadVariableOp(resource=self.handle, dtype=tf.uint8))
            for row in rows:
                row.move(copy)


class _Copy:
    """The rows of a buffer at some time: on the worker until one is asked for, then here."""

    def __init__(self, remote: tf.Tensor):
        self._rows: tf.Tensor | np.ndarray = remote
        self._lock = threading.Lock()

    def on_chief(self) -> np.ndarray:
        with self._lock:
            if not isinstance(self._rows, np.ndarray):
                self._rows = self._rows.numpy()
            return self._rows
