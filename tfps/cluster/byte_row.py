"""Small tensors of known dtypes and shapes as one row of bytes.

A tensor that crosses to a worker, or back, costs a message of its own, however small it is. The
numbers that a call takes, and the small results that it gives, therefore cross as one row.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# Bytes of the longest row that `ByteRow.fits` admits.
_MOST = 256

_DTYPES = frozenset(
    [
        tf.bool,
        *(tf.int8, tf.int16, tf.int32, tf.int64),
        *(tf.uint8, tf.uint16, tf.uint32, tf.uint64),
        *(tf.float16, tf.bfloat16, tf.float32, tf.float64),
        *(tf.complex64, tf.complex128),
    ]
)


class ByteRow:
    """The layout of a row: where each of its tensors lies.

    Rows are packed and unpacked on both sides: in graphs, by `pack` and `unpack`, and on the chief
    with NumPy alone, by `pack_numpy` and `unpack_numpy`.

    Attributes:
      used: number of bytes that the tensors take.
      width: length of the row in bytes, `used` rounded up to a power of two, so that few widths
        serve many functions. What is behind the used bytes is 0.
    """

    def __init__(self, tensors: Sequence[tf.Tensor | tf.TensorSpec]):
        """Lays the tensors out one after the other.

        Args:
          tensors: tensors or specs with dtypes of fixed size and with fully defined shapes.
        """
        ends = list(itertools.accumulate(map(_nbytes, tensors)))
        self._parts = [
            (slice(begin, end), x.dtype, tuple(x.shape))
            for x, begin, end in zip(tensors, [0, *ends], ends, strict=False)
        ]
        self.used = ends[-1]
        self.width = 1 << max(0, self.used - 1).bit_length()
        self._record = np.dtype(
            {
                "names": [f"f{i}" for i in range(len(ends))],
                "formats": [(dtype.as_numpy_dtype, shape) for _, dtype, shape in self._parts],
                "offsets": [where.start for where, _, _ in self._parts],
                "itemsize": self.width,
            }
        )

    @staticmethod
    def fits(tensors: Sequence[tf.Tensor | tf.TensorSpec]) -> bool:
        """Whether a short row can hold the tensors.

        It can if there are any, their shapes are fixed, their dtypes have a fixed size (strings
        have none), and they take at most 256 bytes together.
        """
        known = all(x.dtype in _DTYPES and x.shape.is_fully_defined() for x in tensors)
        return bool(tensors) and known and sum(map(_nbytes, tensors)) <= _MOST

    def pack(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """In a graph, returns the uint8 `[width]` row of tensors that have this layout."""
        parts = [tf.reshape(_bits(x), [-1]) for x in tensors]
        if padding := self.width - self.used:
            parts.append(tf.zeros([padding], tf.uint8))
        return parts[0] if len(parts) == 1 else tf.concat(parts, 0)

    def unpack(self, row: tf.Tensor) -> list[tf.Tensor]:
        """In a graph, returns the tensors of a row, uint8 `[used]` or longer."""
        return [_of_bits(row[where], dtype, shape) for where, dtype, shape in self._parts]

    def pack_numpy(self, values: Sequence[Any]) -> np.ndarray:
        """Returns the uint8 `[width]` row of arrays or Python numbers.

        Raises:
          OverflowError: an integer is out of its dtype's range.
        """
        row: np.ndarray = np.zeros([self.width], np.uint8)
        row.view(self._record)[0] = tuple(values)
        return row

    def unpack_numpy(self, row: np.ndarray) -> list[np.ndarray]:
        """Returns the tensors of a uint8 `[width]` row as arrays; they are copies."""
        return [
            np.frombuffer(row[where].tobytes(), dtype.as_numpy_dtype).reshape(shape)
            for where, dtype, shape in self._parts
        ]


def _nbytes(x: tf.Tensor | tf.TensorSpec) -> int:
    return x.shape.num_elements() * x.dtype.size


def _bits(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.uint8) if x.dtype == tf.bool else tf.bitcast(x, tf.uint8)


def _of_bits(row: tf.Tensor, dtype: tf.DType, shape: tuple[int, ...]) -> tf.Tensor:
    if dtype == tf.bool:
        return tf.reshape(tf.cast(row, tf.bool), shape)
    # `bitcast` takes the bytes of an element from a last axis, which single bytes do not have.
    return tf.bitcast(tf.reshape(row, [*shape, *([dtype.size] if dtype.size > 1 else [])]), dtype)
