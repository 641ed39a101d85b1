"""Stratified sampling: one random element out of each of k runs of neighbours.

Compared with k independent draws, no element is chosen twice, and the sample varies less.
"""

import tensorflow as tf

from tfps.compression.kernels import hashing


def _cut(n: int, k: int) -> tuple[int, int]:
    # (base, longer): the first `longer` strata have base + 1 elements, all later strata have base.
    return n // k, n % k


def lengths(n: int, k: int) -> tf.Tensor:
    """float32 [k]: the number of elements in each of k strata of n elements, k <= n."""
    base, longer = _cut(n, k)
    return tf.cast(base + tf.cast(tf.range(k) < longer, tf.int32), tf.float32)


def choose(n: int, k: int, seed: tf.Tensor) -> tf.Tensor:
    """int32 [k], ascending: a uniformly random index in each stratum; `seed` is int32 [2]."""
    base, longer = _cut(n, k)
    stratum = tf.range(k)
    begin = stratum * base + tf.minimum(stratum, longer)
    length = lengths(n, k)
    within = tf.minimum(tf.floor(hashing.uniform(seed, (k,)) * length), length - 1)
    return begin + tf.cast(within, tf.int32)
