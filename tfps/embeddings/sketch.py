"""How often a key was seen before it has a row: a count-min sketch with conservative updates.

Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch and its
applications" (2005); Estan and Varghese, "New directions in traffic measurement" (2002). A sketch
may count too many and never too few, so that no key is let in late. It is as wide as to let less
than 1% of the keys in early, as long as no more keys are seen than a table expects.
"""

import numpy as np
import tensorflow as tf

from tfps.embeddings.keys import mixed

_ROWS = 4
_COUNTERS = 4  # for each expected key, in each row
_SALTS = (0x8CB92BA72F3D8DD7, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5)


def size_of(expected: int) -> int:
    """Number of counters for so many keys."""
    return _ROWS * (1 << max(10, (_COUNTERS * expected - 1).bit_length()))


def sightings(sketch: tf.Tensor, size: int, keys: tf.Tensor) -> tf.Tensor:
    """Counts keys, and returns int32 [n]: how often each was seen, this time included; 255 at most.

    Args:
      sketch: handle of uint8 [size]. The caller enters its device.
      size: of `size_of`.
      keys: int64 [n], none of them twice.
    """
    width = size // _ROWS
    salts = tf.constant(np.array([_SALTS], np.uint64))
    bits = mixed(tf.bitwise.bitwise_xor(tf.bitcast(keys, tf.uint64)[:, None], salts))
    column = tf.bitcast(tf.bitwise.bitwise_and(bits, tf.constant(width - 1, tf.uint64)), tf.int64)
    places = column + tf.range(_ROWS, dtype=tf.int64) * width
    before = tf.raw_ops.ResourceGather(resource=sketch, indices=places, dtype=tf.uint8)
    seen = tf.minimum(tf.reduce_min(tf.cast(before, tf.int32), axis=1) + 1, 255)
    new = tf.repeat(tf.cast(seen, tf.uint8), _ROWS)
    flat = tf.reshape(places, [-1])
    done = tf.raw_ops.ResourceScatterMax(resource=sketch, indices=flat, updates=new)
    with tf.control_dependencies([one for one in [done] if one is not None]):
        return tf.identity(seen)
