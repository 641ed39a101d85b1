"""Whether a program that is started again has the data that it had: by its first batch."""

import pickle
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfps.model.batches import without_optionals


def fingerprint(batch: Any) -> int:
    """A number that another batch does not have, most likely."""
    leaves = tf.nest.flatten(batch, expand_composites=True)
    found = 0
    for leaf in leaves:
        array = leaf.numpy() if tf.is_tensor(leaf) else leaf
        found = zlib.crc32(pickle.dumps(array), found)
    return found


def warn_if_another(make: Callable[[], tf.data.Dataset], known: int) -> None:
    """Warns if a pass does not begin with the batch with which it had begun.

    A dataset of which two passes of this process differ, because it draws without a seed in a
    `map`, is not judged.

    Args:
      make: gives the dataset as it is in the pass; called once or twice.
      known: the fingerprint of the batch.
    """
    now = _first(make())
    if now != known and now == _first(make()):
        warnings.warn(
            "The dataset has another order, or other data, than in the process before: its pass "
            "begins with another batch. Batches that were used are left out by their numbers, so "
            "some examples are trained on twice and others not at all; give whatever orders files "
            "or examples a seed, such as image_dataset_from_directory(seed=...)",
            stacklevel=2,
        )


def _first(dataset: tf.data.Dataset) -> int | None:
    for batch in dataset.take(1):
        return fingerprint(without_optionals(batch))
    return None
