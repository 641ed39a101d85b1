"""The index of a part: from a key to a reference, in TensorFlow's `DenseHashTable`.

A removed key leaves a mark in the hash table; many of them make it slow, and then it fails. And a
hash table that is full doubles at once, while all who read wait. So before either, a new one is
made beside the old, some keys in each push, and takes its place in one operation.
"""

from collections.abc import Callable

import tensorflow as tf

from tfps.embeddings import room
from tfps.embeddings.handles import KEY, REF, SLOT_BITS, STAMP_BITS, Marks, TableHandles
from tfps.embeddings.keys import EMPTY, REMOVED

# A new hash table is begun when keys and marks fill so much of the old one, and is made so long
# that the keys fill so much of it. TensorFlow doubles one at 0.8.
_FULL, _WANTED = 0.7, 0.5
# Keys that are moved in a push, at least, and for each row of the push.
_MOVED, _MOVED_EACH = 1 << 15, 32
SMALLEST = 1 << 10


def make(buckets: int) -> tf.lookup.experimental.DenseHashTable:
    """Makes a hash table of this length, a power of two, on the device in scope."""
    return tf.lookup.experimental.DenseHashTable(
        tf.int64, tf.int64, -1, EMPTY, REMOVED, initial_num_buckets=buckets
    )


def buckets_for(rows: int) -> int:
    """How long a hash table is made for so many keys: a power of two."""
    return max(SMALLEST, 1 << int(rows / _FULL).bit_length())


def refs_of(slots: tf.Tensor, stamps: tf.Tensor) -> tf.Tensor:
    """int64 [n]: references to rows that are given out with these stamps."""
    short = tf.bitwise.bitwise_and(stamps, (1 << STAMP_BITS) - 1)
    return slots + tf.bitwise.left_shift(short, tf.constant(SLOT_BITS, tf.int64))


def slots_of(refs: tf.Tensor) -> tf.Tensor:
    """int64 [n]: the row number of each reference; 0 for none."""
    slots = tf.bitwise.bitwise_and(refs, tf.constant((1 << SLOT_BITS) - 1, tf.int64))
    return tf.where(refs < 0, tf.zeros_like(refs), slots)


def find(index: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """int64 [n]: the reference of each key, -1 for none. The caller enters the index's device."""
    refs = tf.raw_ops.LookupTableFindV2(
        table_handle=index, keys=keys, default_value=tf.constant(-1, tf.int64)
    )
    refs.set_shape(keys.shape)
    return refs


def insert(handles: TableHandles, marks: Marks, keys: tf.Tensor, refs: tf.Tensor) -> tf.Tensor:
    """Lets keys be found; returns a tensor that exists afterwards."""
    _insert(handles.index, keys, refs)

    def also():
        _insert(handles.scratch, keys, refs)
        return tf.constant(True)

    return tf.cond(marks.moved >= 0, also, lambda: tf.constant(False))


def remove(handles: TableHandles, marks: Marks, keys: tf.Tensor) -> list[tf.Tensor]:
    """Lets keys be found no more; returns tensors that exist afterwards."""
    done = tf.raw_ops.LookupTableRemoveV2(table_handle=handles.index, keys=keys)

    def also():
        done = tf.raw_ops.LookupTableRemoveV2(table_handle=handles.scratch, keys=keys)
        with tf.control_dependencies(_given(done)):
            return tf.constant(True)

    with tf.control_dependencies(_given(done)):
        return [tf.cond(marks.moved >= 0, also, lambda: tf.constant(False))]


def renewed(
    handles: TableHandles,
    marks: Marks,
    pushed: tf.Tensor,
    notes_of: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Does a share of making a new index, where one is needed.

    Args:
      handles, marks: of the part.
      pushed: int32 scalar, rows of the push.
      notes_of: from row numbers to what is noted of the rows.

    Returns:
      The marks.
    """
    held = tf.cast(marks.used - marks.free, tf.float64)
    filled = held + tf.cast(marks.erased, tf.float64)
    full = filled > _FULL * tf.cast(marks.buckets, tf.float64)
    begins = tf.logical_and(marks.moved < 0, full)
    begun = tf.cond(begins, lambda: _begin(handles, marks, held), marks.row)
    marks = Marks.of(begun)
    return tf.cond(marks.moved >= 0, lambda: _move(handles, marks, pushed, notes_of), marks.row)


def _begin(handles, marks, held):
    two = tf.constant(2.0, tf.float64)
    doublings = tf.math.ceil(tf.math.log(tf.maximum(held / _WANTED, 1)) / tf.math.log(two))
    buckets = tf.maximum(tf.cast(two**doublings, tf.int64), SMALLEST)
    done = _empty(handles.scratch, buckets)
    with tf.control_dependencies(_given(done)):
        zero = tf.zeros([], tf.int64)
        return tf.identity(marks._replace(moved=zero, moving=buckets).row())


def _move(handles, marks, pushed, notes_of):
    share = tf.maximum(tf.cast(pushed, tf.int64) * _MOVED_EACH, _MOVED)
    end = tf.minimum(marks.moved + share, marks.used)
    notes = notes_of(tf.range(marks.moved, end))
    notes = tf.boolean_mask(notes, room.is_owned(notes))
    done = _insert(handles.scratch, notes[:, KEY], notes[:, REF])
    with tf.control_dependencies(_given(done)):
        moved = marks._replace(moved=end).row()
        return tf.cond(end >= marks.used, lambda: _exchange(handles, marks), lambda: moved)


def _exchange(handles, marks):
    keys, refs = tf.raw_ops.LookupTableExportV2(
        table_handle=handles.scratch, Tkeys=tf.int64, Tvalues=tf.int64
    )
    done = tf.raw_ops.LookupTableImportV2(table_handle=handles.index, keys=keys, values=refs)
    # Both have the same memory now, and only one may go on with it.
    with tf.control_dependencies(_given(done)):
        done = _empty(handles.scratch, tf.constant(SMALLEST, tf.int64))
    with tf.control_dependencies(_given(done)):
        zero = tf.zeros([], tf.int64)
        row = marks._replace(moved=zero - 1, moving=zero, erased=zero, buckets=marks.moving).row()
        return tf.identity(row)


def clear(table: tf.Tensor, buckets: int) -> tf.Operation | None:
    """Takes all keys out of a hash table, and makes it so long."""
    return _empty(table, tf.constant(buckets, tf.int64))


def _empty(table, buckets):
    # The operation takes what it exports, of rank 2, but refuses it in a graph that knows the rank.
    shape = tf.stack([buckets, 1])
    keys = tf.fill(shape, tf.constant(EMPTY, tf.int64))
    keys, values = [
        tf.compat.v1.placeholder_with_default(one, None)
        for one in (keys, tf.zeros(shape, tf.int64))
    ]
    return tf.raw_ops.LookupTableImportV2(table_handle=table, keys=keys, values=values)


def _insert(table, keys, refs):
    return tf.raw_ops.LookupTableInsertV2(table_handle=table, keys=keys, values=refs)


def _given(done):
    return [] if done is None else [done]
