"""A variable that grows by rows: several variables, of which the later ones are empty at first.

A resource variable that grew would have to be copied. Here a longer table has more parts with rows,
and those that exist stay where they are. All parts exist from the start, so a traced function takes
their handles as arguments and is never traced anew.
"""

import itertools
from collections.abc import Sequence

import tensorflow as tf

from tfps import _tf_resources

# Sizes of the parts, in units of the first: with all of them a table is 17 times its first part.
_GROWTH = 1.5
_PARTS = 8


def ends_of(first: int, limit: int) -> list[int]:
    """The number of rows with one part, with two, and so on.

    Args:
      first: rows of the first part.
      limit: rows of all parts together, at most.
    """
    ends = [min(limit, int(first * _GROWTH**k)) for k in range(_PARTS)]
    return sorted(set(ends))


class Segments:
    """Rows of one kind in a table's parts: on the device on which the constructor ran.

    Attributes:
      shape: of one row.
      dtype: element type.
      parts: `tf.Variable`s.
    """

    def __init__(self, ends: Sequence[int], shape: Sequence[int], dtype: tf.DType | str):
        """Makes the parts, and gives the first its rows.

        The memory of a part is taken when rows are written, because nothing is written at first.

        Args:
          ends: of `ends_of`.
          shape: of one row.
          dtype: element type.
        """
        self.shape, self.dtype = tuple(shape), tf.as_dtype(dtype)
        # TensorFlow 2.21 ends a server that is given the handle of a variable of unknown length, so
        # the variables of empty parts are declared to be as long as they may become.
        self.parts = [
            _tf_resources.without_value([rows, *self.shape], self.dtype) for rows in sizes_of(ends)
        ]
        fill(self.parts[0].handle, ends[0], self.shape, self.dtype)
        for part in self.parts[1:]:
            fill(part.handle, 0, self.shape, self.dtype)

    @property
    def handles(self) -> list[tf.Tensor]:
        """The resource handles of the parts."""
        return [part.handle for part in self.parts]


def fill(handle: tf.Tensor, rows: int, shape: Sequence[int], dtype: tf.DType) -> tf.Operation:
    """Gives a part its rows, with whatever is in memory."""
    # A length that TensorFlow knows while it optimizes a graph would become a constant there.
    length = tf.compat.v1.placeholder_with_default(tf.constant(rows), [])
    value = tf.raw_ops.Empty(shape=tf.stack([length, *shape]), dtype=dtype, init=False)
    return tf.raw_ops.AssignVariableOp(resource=handle, value=value)


def gather(
    handles: Sequence[tf.Tensor], ends: Sequence[int], dtype: tf.DType, where: tf.Tensor
) -> tf.Tensor:
    """Rows [n, ...]. The caller enters the device of the parts.

    Args:
      handles: of the parts.
      ends: of `ends_of`.
      dtype: element type.
      where: int64 [n], row numbers below the last end of a part that has rows.
    """
    if len(handles) == 1:
        return tf.raw_ops.ResourceGather(resource=handles[0], indices=where, dtype=dtype)

    def first():
        return tf.raw_ops.ResourceGather(resource=handles[0], indices=where, dtype=dtype)

    def several():
        part = _part_of(where, ends)
        inside = tf.dynamic_partition(where - _begin_of(part, ends), part, len(handles))
        order = tf.dynamic_partition(tf.range(tf.size(where)), part, len(handles))
        rows = [
            tf.raw_ops.ResourceGather(resource=h, indices=i, dtype=dtype)
            for h, i in zip(handles, inside, strict=True)
        ]
        return tf.dynamic_stitch(order, rows)

    return tf.cond(tf.reduce_all(where < ends[0]), first, several)


def scatter(
    handles: Sequence[tf.Tensor], ends: Sequence[int], where: tf.Tensor, rows: tf.Tensor
) -> tf.Operation:
    """Replaces rows, none of them twice; see `gather`. Returns the operation that is last."""
    if len(handles) == 1:
        return tf.raw_ops.ResourceScatterUpdate(resource=handles[0], indices=where, updates=rows)

    def first():
        done = tf.raw_ops.ResourceScatterUpdate(resource=handles[0], indices=where, updates=rows)
        return _after([done])

    def several():
        part = _part_of(where, ends)
        inside = tf.dynamic_partition(where - _begin_of(part, ends), part, len(handles))
        pieces = tf.dynamic_partition(rows, part, len(handles))
        return _after(
            [
                tf.raw_ops.ResourceScatterUpdate(resource=h, indices=i, updates=piece)
                for h, i, piece in zip(handles, inside, pieces, strict=True)
            ]
        )

    return tf.cond(tf.reduce_all(where < ends[0]), first, several)


def _after(done: Sequence[tf.Operation | None]) -> tf.Tensor:
    with tf.control_dependencies([one for one in done if one is not None]):
        return tf.constant(True)


def _part_of(where: tf.Tensor, ends: Sequence[int]) -> tf.Tensor:
    return tf.add_n(
        [tf.zeros_like(where, tf.int32), *(tf.cast(where >= e, tf.int32) for e in ends[:-1])]
    )


def _begin_of(part: tf.Tensor, ends: Sequence[int]) -> tf.Tensor:
    return tf.gather(tf.constant([0, *ends[:-1]], tf.int64), part)


def sizes_of(ends: Sequence[int]) -> list[int]:
    """Rows of each part."""
    return [end - begin for begin, end in itertools.pairwise([0, *ends])]
