"""Which key gets a row of a part: free rows, new segments, and rows that are taken from other keys.

All of it is called by the one writer of a part; see `hash_table`.
"""

import tensorflow as tf

from tfps.embeddings import index, room, row_values, segments, sketch
from tfps.embeddings.handles import KEY, LAST, META_WIDTH, Marks, TableHandles
from tfps.embeddings.layout import Layout, written


def grant(
    layout: Layout,
    handles: TableHandles,
    keys: tf.Tensor,
    missing: tf.Tensor,
    now: tf.Tensor,
    row: tf.Tensor,
    admits_all: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gives rows to keys without one, as far as there are any.

    Args:
      layout, handles: of the part.
      keys: int64 [n].
      missing: int64 [m], which of the keys have no row.
      now: int64 scalar, the number of the update.
      row: int64 [k], the marks of the part; see `Marks.row`.
      admits_all: whether keys are let in that were not seen often enough.

    Returns:
      (int64 [g], which of the keys get a row; int64 [g], the row numbers; the marks).
    """
    if layout.sketch_size and not admits_all:
        seen = sketch.sightings(handles.sketch, layout.sketch_size, tf.gather(keys, missing))
        missing = tf.boolean_mask(missing, seen >= layout.settings.admit_after)
    wanted = tf.size(missing, tf.int64)
    marks = Marks.of(row)
    lacking = wanted - marks.free - (layout.ends[-1] - marks.used)
    evicted, row = tf.cond(
        lacking > 0,
        lambda: _evicted(layout, handles, marks, lacking, now),
        lambda: (tf.zeros([0], tf.int64), row),
    )
    marks = Marks.of(row)
    slots, marks = room.taken(handles, marks, wanted, layout.ends)
    slots = tf.concat([slots, evicted], 0)[:wanted]
    needed = [marks.used > end for end in layout.ends[:-1]]
    grown = [
        _grow(layout, handles, k, tf.logical_and(needs, marks.parts <= k))
        for k, needs in enumerate(needed, start=1)
    ]
    parts = 1 + tf.add_n([tf.zeros([], tf.int64), *(tf.cast(n, tf.int64) for n in needed)])
    marks = marks._replace(parts=tf.maximum(marks.parts, parts))
    granted = tf.size(slots, tf.int64)
    marks = marks._replace(stamp=marks.stamp + granted, refused=marks.refused + wanted - granted)
    with tf.control_dependencies(grown):
        kept = layout.kept(handles, slots)
    with tf.control_dependencies([*grown, *kept]):
        return missing[:granted], tf.identity(slots), marks.row()


def swept(layout: Layout, handles: TableHandles, marks: Marks, now: tf.Tensor) -> tf.Tensor:
    """Gives back the expired rows in a share of the part; returns int64 [k], the marks.

    A quarter of the time of expiry takes it through all rows. See `grant` for the arguments.
    """
    share = 4 * marks.used // layout.settings.expire_after + 64
    candidates = room.window(marks.swept, share, marks.used)
    meta = layout.notes(handles, candidates)
    owned = room.is_owned(meta)
    chosen = tf.where(tf.logical_and(owned, layout.is_expired(meta[:, LAST], now)))[:, 0]
    after = marks.swept + tf.size(candidates, tf.int64)
    marks = marks._replace(swept=tf.math.floormod(after, tf.maximum(marks.used, 1)))

    def give_back():
        slots, keys = tf.gather(candidates, chosen), tf.gather(meta[:, KEY], chosen)
        given = removed(layout, handles, marks, slots, keys)
        return given._replace(expired=marks.expired + tf.size(slots, tf.int64)).row()

    return tf.cond(tf.size(chosen) > 0, give_back, marks.row)


def removed(
    layout: Layout, handles: TableHandles, marks: Marks, slots: tf.Tensor, keys: tf.Tensor
) -> Marks:
    """Takes rows from their keys, and puts them on the list of free ones; returns the marks.

    Args:
      layout, handles, marks: of the part.
      slots: int64 [n], row numbers.
      keys: int64 [n], which keys have these rows.
    """
    row = _erased(layout, handles, marks, slots, keys)
    return room.given_back(handles, Marks.of(row), slots, layout.ends)


def _evicted(layout, handles, marks, lacking, now):
    """Takes rows from keys; returns (their numbers, the marks)."""
    if layout.settings.evict == "none":
        return tf.zeros([0], tf.int64), marks.row()
    candidates = room.window(marks.hand, room.sample_of(lacking), marks.used)
    meta = layout.notes(handles, candidates)
    score = room.worth(meta, layout.settings.evict, now)
    expired = layout.is_expired(meta[:, LAST], now)
    first = tf.logical_and(expired, score < room.KEPT)
    score = tf.where(first, tf.zeros_like(score) - 1, score)
    chosen = room.least(score, lacking)
    after = marks.hand + tf.size(candidates, tf.int64)
    hand = tf.math.floormod(after, tf.maximum(marks.used, 1))
    slots = tf.gather(candidates, chosen)
    marks = marks._replace(hand=hand, evicted=marks.evicted + tf.size(slots, tf.int64))
    row = _erased(layout, handles, marks, slots, tf.gather(meta[:, KEY], chosen))
    return slots, row


def _erased(layout, handles, marks, slots, keys):
    """Takes keys out of the index, and rows from their keys; returns the marks."""
    removed = index.remove(handles, marks, keys)
    gone = room.unowned(slots)
    with tf.control_dependencies(layout.kept(handles, slots)):
        done = segments.scatter(handles.meta, layout.ends, slots, gone)
    marks = marks._replace(erased=marks.erased + tf.size(keys, tf.int64))
    with tf.control_dependencies([*removed, *written([done])]):
        return tf.identity(marks.row())


def _grow(layout, handles, k, needed):
    """Gives segment `k` its rows, if it is needed."""
    rows = segments.sizes_of(layout.ends)[k]
    width = layout.settings.width
    families = [(handles.meta, (META_WIDTH,), tf.int64), (handles.free, (), tf.int64)]
    forms = row_values.variables_of(layout.settings.row_dtype, width)
    families += [(f, *form) for f, form in zip(handles.values, forms, strict=True)]
    families += [(f, (width,), tf.float32) for f in handles.slots if f]
    if handles.history is not None:
        families.append((handles.history.marks, (), tf.int32))

    def grow():
        done = [segments.fill(f[k], rows, shape, dtype) for f, shape, dtype in families]
        with tf.control_dependencies(written(done)):
            return tf.constant(True)

    return tf.cond(needed, grow, lambda: tf.constant(False))
