"""Input in splits: files or record ranges, each read by whichever worker is free."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfps import errors


class Splits:
    """Files or ranges of records that are leased to workers one by one, each once in an epoch.

    It is given as `x` to `Trainer.fit` and `evaluate`. A worker that is free gets the next split,
    and reads it to its end. So uneven workers need no sharding: a slow worker gets fewer splits. A
    split of a lost worker goes on with another one, after the last batch that was used. Give
    several times as many splits as workers, since an epoch ends with the last split.

    ```python
    x = tfps.data.Splits(files, lambda name: tf.data.TFRecordDataset(name).map(parse).batch(64))
    trainer.fit(x, epochs=3)
    ```

    Attributes:
      items: the splits, as they were given.
      make_dataset: see `__init__`.
      shuffle: whether each epoch has an order of splits of its own.
      seed: what the orders follow from.
    """

    def __init__(
        self,
        items: Sequence[Any],
        make_dataset: Callable[[Any], tf.data.Dataset],
        shuffle: bool = True,
        seed: int = 0,
    ):
        """Reads nothing yet.

        Args:
          items: one item for each split, such as a file's name or a range of records; see `ranges`.
          make_dataset: a function from an item to the `tf.data.Dataset` of its batches. It is
            called for each split when a worker is about to read it; the dataset is read on that
            worker's machine. All datasets have the same `element_spec`. What it draws from the
            global seeds of TensorFlow, NumPy and Python, such as the order of a shuffle without a
            seed, follows from `seed`, the epoch and the split.
          shuffle: whether the splits come in an order drawn anew for each pass over them, or as
            they were given.
          seed: of the orders.

        Raises:
          DataError: there is no split, `make_dataset` is no function, or `seed` no whole number.
        """
        self.items = list(items)
        self.make_dataset, self.shuffle, self.seed = make_dataset, shuffle, seed
        if not self.items:
            raise errors.DataError("Splits was given no items; give it at least one file or range")
        if not callable(make_dataset):
            raise errors.DataError(
                f"make_dataset={make_dataset!r} is no function; give one from an item to a "
                "tf.data.Dataset of batches"
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise errors.DataError(f"seed={seed!r} is no whole number; give one, such as 0")

    def __len__(self) -> int:
        """Number of splits."""
        return len(self.items)

    def order(self, turn: int) -> list[int]:
        """The indexes of the items in the order of a pass.

        Args:
          turn: number of the pass.
        """
        if not self.shuffle:
            return list(range(len(self)))
        seeds = np.random.SeedSequence([self.seed % 2**64, turn])
        return np.random.default_rng(seeds).permutation(len(self)).tolist()


def ranges(count: int, size: int) -> list[tuple[int, int]]:
    """Ranges of consecutive numbers, such as those of records, to be given to `Splits`.

    Args:
      count: how many numbers, from 0 on.
      size: how many in each range; the last may have fewer.

    Returns:
      (begin, end) of each range; `end` is not part of it.

    Raises:
      DataError: `size` is below 1.
    """
    if size < 1:
        raise errors.DataError(f"size={size} is no size of a range; it must be at least 1")
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]
