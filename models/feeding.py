"""From arrays to what `fit` takes."""

from typing import Any

import tensorflow as tf

import tfps

Arrays = Any  # An array, or a dictionary of arrays, with the same first dimension.


def shuffled(x: Arrays, y: Any, batch_size: int, seed: int) -> tf.data.Dataset:
    """A dataset of full batches (x, y), in another order in each epoch.

    What is left of an epoch after its last full batch is not used in that epoch.

    Args:
      x: inputs, [n, ...].
      y: targets, [n, ...].
      batch_size: number of examples in a batch.
      seed: of the orders.

    Raises:
      DataError: there is less than a batch.
    """
    count = len(y)
    if count < batch_size:
        raise tfps.DataError(
            f"--data has {count} examples to train on, fewer than a batch of {batch_size}; give "
            "more, or a smaller --batch_size"
        )
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(count, seed)
    return data.batch(batch_size, drop_remainder=True).prefetch(2)


def in_order(x: Arrays, y: Any, batch_size: int) -> tf.data.Dataset:
    """A dataset of batches (x, y) in the order of the arrays; the last may be smaller."""
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).prefetch(2)
