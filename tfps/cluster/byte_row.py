"""Small tensors of known dtypes and shapes as one row of bytes."""

import itertools

import numpy as np
import tensorflow as tf

# Bytes of the longest row.
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
    """Where each of some tensors lies in a row.

    Attributes:
      width: bytes of the row, a power of two: few widths serve many functions.
    """

    def __init__(self, tensors: list[tf.Tensor | tf.TensorSpec]):
        """Lays them out one after the other; they must fit (`fits`)."""
        ends = list(itertools.accumulate(map(_nbytes, tensors)))
        self._parts = [
            (slice(begin, end), x.dtype.as_numpy_dtype, tuple(x.shape))
            for x, begin, end in zip(tensors, [0, *ends], ends, strict=False)
        ]
        self.width = 1 << max(0, ends[-1] - 1).bit_length()
        self._padding = self.width - ends[-1]

    @staticmethod
    def fits(tensors: list[tf.Tensor | tf.TensorSpec]) -> bool:
        """Whether there are any, of fixed shapes and few bytes, and not strings, say."""
        known = all(x.dtype in _DTYPES and x.shape.is_fully_defined() for x in tensors)
        return bool(tensors) and known and sum(map(_nbytes, tensors)) <= _MOST

    def pack(self, tensors: list[tf.Tensor]) -> tf.Tensor:
        """uint8 `[width]` in a graph, of tensors of the given dtypes and shapes."""
        parts = [tf.reshape(_bits(x), [-1]) for x in tensors]
        if self._padding:
            parts.append(tf.zeros([self._padding], tf.uint8))
        return parts[0] if len(parts) == 1 else tf.concat(parts, 0)

    def unpack(self, row: np.ndarray) -> list[tf.Tensor]:
        """The tensors of NumPy uint8 `[width]`."""
        return [
            tf.constant(np.frombuffer(row[where].tobytes(), dtype).reshape(shape))
            for where, dtype, shape in self._parts
        ]


def _nbytes(x: tf.Tensor | tf.TensorSpec) -> int:
    return x.shape.num_elements() * x.dtype.size


def _bits(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.uint8) if x.dtype == tf.bool else tf.bitcast(x, tf.uint8)
