"""The input of all systems: batches of random tokens, made where they are used.

Speed does not depend on what is learned, except that each batch has its own words,
and so a sparse gradient its own rows.
"""

import tensorflow as tf

from benchmarks.wire.sizes import BATCH, CONTEXT, VOCABULARY


def dataset(worker: int) -> tf.data.Dataset:
    """Endless (tokens, next tokens), int32 [BATCH, CONTEXT]; each worker has its own tokens."""

    def batch(step):
        seed = tf.stack([tf.cast(worker, tf.int64), step])
        shape = [BATCH, CONTEXT + 1]
        tokens = tf.random.stateless_uniform(shape, seed, 0, VOCABULARY, tf.int32)
        return tokens[:, :-1], tokens[:, 1:]

    return tf.data.Dataset.counter().map(batch).prefetch(2)
