"""Which examples or files train, and which validate: K-fold and shuffle splits, by a seed."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfps import errors


def kfold(items: int | Sequence[Any], k: int = 5, seed: int | None = None) -> Iterator[Any]:
    """Cuts items into k folds; each fold validates once, and the others train.

    It has the meaning, and with a seed the numbers, of scikit-learn's
    `KFold(k, shuffle=seed is not None, random_state=seed)`: the first `n % k` folds have an item
    more than the others.

    Args:
      items: a number of items, or the items themselves, such as file names.
      k: number of folds.
      seed: of the order in which items are dealt out to folds. None gives each fold consecutive
        items.

    Yields:
      (training items, validation items) of each fold, both in the order of `items`: lists, or
      int64 arrays of indexes if `items` is a number.

    Raises:
      DataError: there are fewer than 2 folds, or fewer items than folds.
    """
    count = _count(items)
    if not 2 <= k <= count:
        raise errors.DataError(
            f"k={k} folds of {count} item(s) cannot be cut; give from 2 to as many folds as items"
        )
    return _folds(items, count, k, seed)


def _folds(items: Any, count: int, k: int, seed: int | None) -> Iterator[Any]:
    order = np.arange(count)
    if seed is not None:
        np.random.RandomState(seed).shuffle(order)
    for fold in np.array_split(order, k):
        validates: np.ndarray = np.zeros([count], dtype=np.bool_)
        validates[fold] = True
        yield _taken(items, np.flatnonzero(~validates)), _taken(items, np.flatnonzero(validates))


def shuffle_split(
    items: int | Sequence[Any],
    n_splits: int = 10,
    test_size: float | int | None = None,
    train_size: float | int | None = None,
    seed: int | None = None,
) -> Iterator[Any]:
    """Draws training and validation items at random, several times.

    It has the meaning, and with a seed the numbers, of scikit-learn's
    `ShuffleSplit(n_splits, test_size=test_size, train_size=train_size, random_state=seed)`: an item
    may validate in several splits, or in none.

    Args:
      items: a number of items, or the items themselves, such as file names.
      n_splits: how often to draw.
      test_size: how many items validate: a share between 0 and 1, rounded up, or a whole number.
        None for all that do not train, or for a tenth if `train_size` is None as well.
      train_size: how many items train: a share, rounded down, or a whole number. None for all that
        do not validate.
      seed: of what is drawn; None for another draw each time.

    Yields:
      (training items, validation items) of each split in the order in which they were drawn: lists,
      or int64 arrays of indexes if `items` is a number.

    Raises:
      DataError: `n_splits` is below 1, a size is out of range, or one of the two would be empty.
    """
    count = _count(items)
    if n_splits < 1:
        raise errors.DataError(f"n_splits={n_splits} must be at least 1")
    if test_size is None and train_size is None:
        test_size = 0.1
    given = _size("test_size", test_size, count, math.ceil)
    train = _size("train_size", train_size, count, math.floor)
    test = count - (train or 0) if given is None else given
    train = count - test if train is None else train
    if train < 1 or test < 1 or train + test > count:
        raise errors.DataError(
            f"train_size={train_size!r} and test_size={test_size!r} make {train} and {test} of "
            f"{count} item(s); both must be at least 1, and together at most {count}"
        )
    return _draws(items, count, n_splits, test, train, seed)


def _draws(
    items: Any, count: int, n_splits: int, test: int, train: int, seed: int | None
) -> Iterator[Any]:
    random = np.random.RandomState(seed)
    for _ in range(n_splits):
        order = random.permutation(count)
        yield _taken(items, order[test : test + train]), _taken(items, order[:test])


def _count(items: int | Sequence[Any]) -> int:
    return int(items) if isinstance(items, (int, np.integer)) else len(items)


def _size(name: str, size: float | int | None, count: int, rounded: Any) -> int | None:
    if size is None:
        return None
    if isinstance(size, (int, np.integer)):
        return int(size)
    if not 0 < size < 1:
        raise errors.DataError(
            f"{name}={size!r} is no share; give one between 0 and 1, or a number"
        )
    return int(rounded(size * count))


def _taken(items: Any, indexes: np.ndarray) -> Any:
    if isinstance(items, (int, np.integer)):
        return indexes
    return [items[i] for i in indexes]
