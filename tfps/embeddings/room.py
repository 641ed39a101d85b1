"""Which rows of a part are free, and which are to go when none is."""

from collections.abc import Sequence

import tensorflow as tf

from tfps.embeddings import segments
from tfps.embeddings.handles import COUNT, KEY, LAST, META_WIDTH, Marks, TableHandles
from tfps.embeddings.keys import REMOVED

# What a row is worth that may not go.
KEPT = 1 << 62
# Rows that are looked at for each one that is to go, and at least.
_SAMPLE, _SAMPLE_AT_LEAST = 8, 1024
_AGES = 1 << 40


def taken(
    handles: TableHandles, marks: Marks, wanted: tf.Tensor, ends: Sequence[int]
) -> tuple[tf.Tensor, Marks]:
    """Takes rows that nobody owns.

    Args:
      handles, marks: of the part.
      wanted: int64 scalar, how many.
      ends: of `segments.ends_of`.

    Returns:
      (int64 [at most `wanted`], row numbers; the marks).
    """
    again = tf.minimum(wanted, marks.free)
    places = tf.range(marks.free - again, marks.free)
    old = segments.gather(handles.free, ends, tf.int64, places)
    more = tf.minimum(wanted - again, tf.maximum(ends[-1] - marks.used, 0))
    new = marks.used + tf.range(more)
    slots = tf.concat([old, new], 0)
    return slots, marks._replace(free=marks.free - again, used=marks.used + more)


def given_back(handles: TableHandles, marks: Marks, slots: tf.Tensor, ends: Sequence[int]) -> Marks:
    """Puts rows on the list of free ones; returns the marks."""
    count = tf.size(slots, tf.int64)
    places = marks.free + tf.range(count)
    done = segments.scatter(handles.free, ends, places, slots)
    with tf.control_dependencies([] if done is None else [done]):
        free = tf.identity(marks.free + count)
    return marks._replace(free=free)


def unowned(slots: tf.Tensor) -> tf.Tensor:
    """int64 [n, 4]: what is noted of rows that nobody owns."""
    rows = tf.tile(tf.constant([[REMOVED, -1, 0, 0]], tf.int64), [tf.size(slots), 1])
    rows.set_shape([None, META_WIDTH])
    return rows


def is_owned(meta: tf.Tensor) -> tf.Tensor:
    """bool [n]: of rows that were given out once, whether they have a key."""
    return tf.not_equal(meta[:, KEY], REMOVED)


def sample_of(lacking: tf.Tensor) -> tf.Tensor:
    """int64 scalar: how many rows are looked at to find so many that are to go."""
    return tf.maximum(lacking * _SAMPLE, _SAMPLE_AT_LEAST)


def window(begin: tf.Tensor, count: tf.Tensor, used: tf.Tensor) -> tf.Tensor:
    """int64 [at most `count`]: row numbers that follow one another, and go on at 0 after `used`."""
    count = tf.minimum(tf.cast(count, tf.int64), used)
    return tf.math.floormod(begin + tf.range(count), tf.maximum(used, 1))


def worth(meta: tf.Tensor, evict: str, now: tf.Tensor) -> tf.Tensor:
    """int64 [n]: the rows with the least go first; `KEPT` for those that may not go.

    Args:
      meta: int64 [n, 4], what is noted of the rows.
      evict: see `TableSettings`; among rows that were named equally often the older ones go first.
      now: int64 scalar, the number of the update, for which rows that it names are kept.
    """
    last = tf.minimum(meta[:, LAST], _AGES - 1)
    score = last
    if evict == "lfu":
        score = tf.minimum(meta[:, COUNT], (1 << 21) - 1) * _AGES + last
    may_go = tf.logical_and(is_owned(meta), tf.not_equal(meta[:, LAST], now))
    return tf.where(may_go, score, tf.constant(KEPT, tf.int64))


def least(score: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """int64 [at most `count`]: the positions of the smallest scores below `KEPT`."""
    order = tf.argsort(score)[: tf.cast(count, tf.int32)]
    order = tf.boolean_mask(order, tf.gather(score, order) < KEPT)
    return tf.cast(order, tf.int64)
