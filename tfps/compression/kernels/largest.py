"""Finding the largest elements without sorting them all.

A threshold is estimated from a sample, as in Deep Gradient Compression (Lin et
al. 2018), a little too low; only what exceeds it is ordered.
"""

import tensorflow as tf

from tfps.compression.kernels import strata
from tfps.compression.kernels.compiling import compiled

# Of so many elements the threshold is known to a few percent of the sent count.
_SAMPLE = 16384

# Aiming at more candidates than needed makes it rare that there are too few, and
# more than a few percent too few all but impossible.
_SURPLUS = 1.15
_MORE = 4


@compiled
def _sample(flat, seed):
    n = flat.shape[0]
    chosen = tf.abs(tf.gather(flat, strata.choose(n, min(n, _SAMPLE), seed)))
    return tf.where(tf.math.is_nan(chosen), 0.0, chosen)


@compiled
def _exceeds(flat, threshold):
    # Bytes, padded to whole words of eight.
    return tf.pad(tf.cast(tf.abs(flat) > threshold, tf.uint8), [[0, -flat.shape[0] % 8]])


@compiled
def _equals(flat, threshold):
    return tf.pad(tf.cast(tf.equal(tf.abs(flat), threshold), tf.uint8), [[0, -flat.shape[0] % 8]])


def _positions(mask: tf.Tensor) -> tf.Tensor:
    # `tf.where` looks at one element after the other. Few are set, so it first
    # looks at them in eights, and then into the few eights that have one.
    words = tf.bitcast(tf.reshape(mask, [-1, 8]), tf.int64)
    marked = tf.where(tf.not_equal(words, 0))[:, 0]
    inside = tf.where(tf.not_equal(tf.bitcast(tf.gather(words, marked), tf.uint8), 0))
    return tf.cast(tf.gather(marked, inside[:, 0]) * 8 + inside[:, 1], tf.int32)


def largest(flat: tf.Tensor, k, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """About the k elements of largest magnitude, and where they are.

    Args:
      flat: float32 [n]; NaN is never among the largest.
      k: int or int32 scalar, at most n.
      seed: int32[2].

    Returns:
      (values float32 [k], indices int32 [k]), distinct but for padding: zeros that
      point where another value was found too, or, if there is none, at the start
      of a tensor of zeros. There is padding only if the threshold came out a
      little too high, or no more elements differ from zero.
    """
    n = flat.shape[0]
    k = tf.convert_to_tensor(k)
    size = min(n, _SAMPLE)
    rank = tf.cast(tf.cast(k, tf.float32) * (_SURPLUS * size / n), tf.int32) + _MORE
    sample = tf.math.top_k(_sample(flat, seed), tf.minimum(rank, size), sorted=False)
    threshold = tf.reduce_min(sample.values)
    above = _positions(_exceeds(flat, threshold))
    missing = k - tf.size(above)
    # Where many elements equal the threshold, any of them fill up.
    equal = tf.cond(
        (missing > 0) & (threshold > 0),
        lambda: _positions(_equals(flat, threshold))[:missing],
        lambda: tf.zeros([0], tf.int32),
    )
    found = tf.concat([above, equal], 0)
    values = tf.gather(flat, found)
    best = tf.math.top_k(tf.abs(values), tf.minimum(k, tf.size(found)), sorted=False).indices
    values, found = tf.gather(values, best), tf.gather(found, best)
    padding = [[0, k - tf.size(best)]]
    somewhere = tf.reduce_max(tf.concat([[0], found], 0))
    return tf.pad(values, padding), tf.pad(found, padding, constant_values=somewhere)
