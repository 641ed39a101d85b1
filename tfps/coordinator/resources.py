"""The per-worker values of a coordinator: what has to be made again on a worker that returns."""

import itertools
import weakref
from collections.abc import Iterator

from tfps.coordinator.remote_value import Resource


class Resources:
    """For each worker, the values on it that somebody still holds, in the order of their making.

    A value may be made from another one, as an iterator is from a dataset, so the order counts.
    """

    def __init__(self, num_workers: int):
        """Holds none yet."""
        self._numbers = itertools.count()
        self._of: list[weakref.WeakKeyDictionary[Resource, int]] = [
            weakref.WeakKeyDictionary() for _ in range(num_workers)
        ]

    def __len__(self) -> int:
        return len(self._of)

    def add(self, worker: int, resource: Resource) -> None:
        """Notes a new value of a worker."""
        self._of[worker][resource] = next(self._numbers)

    def of(self, worker: int) -> list[Resource]:
        """Returns a worker's values."""
        found = sorted(list(self._of[worker].items()), key=lambda pair: pair[1])
        return [resource for resource, _ in found]

    def __iter__(self) -> Iterator["weakref.WeakKeyDictionary[Resource, int]"]:
        return iter(self._of)
