"""Finding the largest elements without sorting all elements.

A threshold is estimated from a sample, as in Deep Gradient Compression (Lin et al. 2018). It is
chosen a little too low, and only the elements that exceed it are sorted.
"""

import tensorflow as tf

from tfps.compression.kernels import strata
from tfps.compression.kernels.compiling import compiled

# With a sample of this size, the number of elements above the threshold is off by a few percent.
_SAMPLE = 16384

# The threshold aims at this many times the candidates that are needed, and a few more. So there
# are rarely too few candidates, and hardly ever more than a few percent too few.
_SURPLUS = 1.15
_MORE = 4


@compiled
def _sample(flat, seed):
    n = flat.shape[0]
    chosen = tf.abs(tf.gather(flat, strata.choose(n, min(n, _SAMPLE), seed)))
    return tf.where(tf.math.is_nan(chosen), 0.0, chosen)


@compiled
def _exceeds(flat, threshold):
    # uint8 0 or 1 for each element, padded to whole words of eight bytes.
    return tf.pad(tf.cast(tf.abs(flat) > threshold, tf.uint8), [[0, -flat.shape[0] % 8]])


@compiled
def _equals(flat, threshold):
    return tf.pad(tf.cast(tf.equal(tf.abs(flat), threshold), tf.uint8), [[0, -flat.shape[0] % 8]])


def _positions(mask: tf.Tensor) -> tf.Tensor:
    # `tf.where` visits one element after another. Few bytes of the mask are set, so the first
    # `tf.where` visits words of eight bytes, and the second only the bytes of words that are not 0.
    words = tf.bitcast(tf.reshape(mask, [-1, 8]), tf.int64)
    marked = tf.where(tf.not_equal(words, 0))[:, 0]
    inside = tf.where(tf.not_equal(tf.bitcast(tf.gather(words, marked), tf.uint8), 0))
    return tf.cast(tf.gather(marked, inside[:, 0]) * 8 + inside[:, 1], tf.int32)


def largest(flat: tf.Tensor, k: int | tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds about the k elements of largest magnitude, and where they are.

    Args:
      flat: float32 [n]. NaN is never among the largest.
      k: an int or int32 scalar, at most n.
      seed: int32 [2].

    Returns:
      (values float32 [k], indices int32 [k]): Indices are distinct except for padding. Padding is
      zeros whose index is that of another value, or 0 if the tensor is all zeros. There is padding
      only if the threshold came out a little too high, or if fewer than k elements differ from
      zero.
    """
    n = flat.shape[0]
    k = tf.convert_to_tensor(k)
    size = min(n, _SAMPLE)
    rank = tf.cast(tf.cast(k, tf.float32) * (_SURPLUS * size / n), tf.int32) + _MORE
    sample = tf.math.top_k(_sample(flat, seed), tf.minimum(rank, size), sorted=False)
    threshold = tf.reduce_min(sample.values)
    above = _positions(_exceeds(flat, threshold))
    missing = k - tf.size(above)
    # If many elements equal the threshold, any of them may fill the missing places.
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
