"""From arrays to what `fit` takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
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


def groups_by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Puts sequences of similar lengths together, so that batches need little padding.

    Args:
      lengths: of the sequences.
      batch_size: smallest size of a batch, unless there are fewer sequences at all.

    Returns:
      For each batch the indices of its sequences. Sizes of batches differ by one at most.
    """
    if not len(lengths):
        return []
    order = np.argsort(lengths, kind="stable")
    return np.array_split(order, max(1, len(order) // batch_size))


def by_length(
    columns: Sequence[list[np.ndarray]], batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """A dataset of batches of sequences of similar lengths, padded with zeros.

    Args:
      columns: what an example has, such as inputs and targets: for each example an array [length,
        ...], whose length may differ. Lengths of the first column decide what comes together.
      batch_size: smallest size of a batch, unless there are fewer examples at all.
      seed: of the order of batches, which is another one in each epoch; None to go from short to
        long.

    Returns:
      A dataset of tuples with an array [batch, longest, ...] for each column.

    Raises:
      DataError: there is no example.
    """
    if not columns[0]:
        raise tfps.DataError("--data has no examples that can be used; give more")
    groups = groups_by_length([len(one) for one in columns[0]], batch_size)
    order = np.concatenate(groups)
    ends = tf.constant(np.cumsum([0, *map(len, groups)]))
    rows = [
        tf.RaggedTensor.from_row_lengths(
            np.concatenate([column[i] for i in order]), [len(column[i]) for i in order]
        )
        for column in columns
    ]
    chosen = tf.data.Dataset.range(len(groups))
    if seed is not None:
        chosen = chosen.shuffle(len(groups), seed)
    return chosen.map(
        lambda i: tuple(row[ends[i] : ends[i + 1]].to_tensor() for row in rows)
    ).prefetch(2)
