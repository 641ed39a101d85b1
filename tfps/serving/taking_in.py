"""What has changed, taken into a state: in the graph of a served model."""

import tensorflow as tf

from tfps.serving.state import View

# Under which names a delta is written; those of a weight or table end with its index.
ID, NUMBER = "id", "number"
CHANGED, VALUES = "weight_rows", "weight_values"
KEYS, ROWS, REMOVED = "keys", "rows", "removed"


def taken_in(now: View, path: tf.Tensor, id: tf.Tensor) -> View:
    """The state after a delta.

    Args:
      now: the state before.
      path: string scalar, of the delta. It is an error of the call if the delta is of another
        export, or does not follow `now`.
      id: string scalar, of the export.
    """
    read = _Reader(path)
    of, number = read(ID, tf.string), read(NUMBER, tf.int64)
    belongs = tf.debugging.Assert(
        tf.equal(of, id), ["the delta is of another export; take it to a model of that", path]
    )
    follows = tf.debugging.Assert(
        tf.equal(number, now.number + 1),
        ["a delta goes in after the one before; this and the state have the numbers", number,
         now.number],
    )  # fmt: skip
    with tf.control_dependencies([belongs, follows]):
        number = tf.identity(number)
    weights = [_weight(read, k, value) for k, value in enumerate(now.weights)]
    tables = [_table(read, k, *one) for k, one in enumerate(zip(now.keys, now.rows, strict=True))]
    return View(weights, [keys for keys, _ in tables], [rows for _, rows in tables], number)


class _Reader:
    """Reads tensors of a delta by name."""

    def __init__(self, path: tf.Tensor):
        self._path = path

    def __call__(self, name, dtype, shape=()):
        (found,) = tf.raw_ops.RestoreV2(
            prefix=self._path, tensor_names=[name], shape_and_slices=[""], dtypes=[dtype]
        )
        found.set_shape(shape)
        return found


def _weight(read, k, value):
    if not value.shape.rank:
        return read(f"{VALUES}/{k}", value.dtype, value.shape)
    rows = read(f"{CHANGED}/{k}", tf.int64, [None])
    values = read(f"{VALUES}/{k}", value.dtype, [None, *value.shape[1:]])
    return tf.tensor_scatter_nd_update(value, rows[:, None], values)


def _table(read, k, keys, rows):
    changed = read(f"{KEYS}/{k}", tf.int64, [None])
    values = read(f"{ROWS}/{k}", rows.dtype, [None, *rows.shape[1:]])
    removed = read(f"{REMOVED}/{k}", tf.int64, [None])
    gone = tf.logical_or(is_among(removed, keys), is_among(changed, keys))
    left = tf.where(tf.logical_not(gone))[:, 0]
    kept = tf.gather(keys, left)
    # Both are in order, so a key comes after all those of the other that are smaller.
    order = [
        tf.range(tf.size(kept, tf.int64)) + places(changed, kept),
        tf.range(tf.size(changed, tf.int64)) + places(kept, changed),
    ]
    order = [tf.cast(one, tf.int32) for one in order]
    merged = tf.dynamic_stitch(order, [kept, changed])
    return merged, tf.dynamic_stitch(order, [tf.gather(rows, left), values])


def places(keys: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """int64 [n]: for each wanted key, how many of `keys`, int64 in ascending order, are smaller."""
    return tf.searchsorted(keys, wanted, out_type=tf.int64)


def at(values: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Rows of `values`; zeros where a place, int64 [n], is behind the last."""
    behind = tf.zeros([1, *values.shape[1:]], values.dtype)
    size = tf.size(place)
    return tf.cond(
        tf.shape(values)[0] > 0,
        lambda: tf.gather(values, tf.minimum(place, tf.shape(values, tf.int64)[0] - 1)),
        lambda: tf.repeat(behind, size, 0),
    )


def is_among(keys: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """bool [n]: whether each wanted key is one of `keys`, int64 in ascending order."""
    place = places(keys, wanted)
    there = place < tf.size(keys, tf.int64)
    return tf.logical_and(there, tf.equal(at(keys, place), wanted))
