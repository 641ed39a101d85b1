"""One random element out of each of k runs of neighbours.

Compared with k independent draws it never chooses an element twice, and varies less.
"""

import tensorflow as tf

from tfps.compression.kernels import hashing


def _cut(n: int, k: int) -> tuple[int, int]:
    # The first `longer` strata have base + 1 elements, the others have base.
    return n // k, n % k


def lengths(n: int, k: int) -> tf.Tensor:
    """float32 [k]: elements in each of k <= n strata of n."""
    base, longer = _cut(n, k)
    return tf.cast(base + tf.cast(tf.range(k) < longer, tf.int32), tf.float32)


def choose(n: int, k: int, seed: tf.Tensor) -> tf.Tensor:
    """int32 [k], ascending: an index in each stratum, all equally likely."""
    base, longer = _cut(n, k)
    stratum = tf.range(k)
    begin = stratum * base + tf.minimum(stratum, longer)
    length = lengths(n, k)
    within = tf.minimum(tf.floor(hashing.uniform(seed, (k,)) * length), length - 1)
    return begin + tf.cast(within, tf.int32)
