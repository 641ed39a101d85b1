"""The closures that only one worker may run: what is made on the worker, and made again there."""

import collections

from tfps.coordinator.queued import Queued
from tfps.coordinator.remote_value import Resource
from tfps.coordinator.resources import Resources


class OwnQueues:
    """A queue for each worker. Whoever calls a method holds the work queue's lock."""

    def __init__(self, resources: Resources, lives: list[int]):
        """Has no closure yet.

        Args:
          resources: the per-worker values, which are made again on workers that come back.
          lives: for each worker, the life in which its values are made; see `Members.life`.
        """
        self._resources = resources
        self._lives = lives
        self._waiting: list[collections.deque[Queued]] = [collections.deque() for _ in lives]

    def make(self, worker: int, resource: Resource) -> None:
        """Notes a new per-worker value, whose closure is about to be put here."""
        self._resources.add(worker, resource)

    def put(self, worker: int, closure: Queued) -> None:
        """Adds a closure behind all others of its worker."""
        self._waiting[worker].append(closure)

    def put_back(self, worker: int, closure: Queued) -> None:
        """Adds a closure again that has lost its worker, before all others."""
        self._waiting[worker].appendleft(closure)

    def take(self, worker: int) -> Queued | None:
        """Returns the next closure of a worker; None if there is none."""
        return self._waiting[worker].popleft() if self._waiting[worker] else None

    def clear(self) -> list[Queued]:
        """Forgets all closures, and returns them."""
        closures = [closure for waiting in self._waiting for closure in waiting]
        for waiting in self._waiting:
            waiting.clear()
        return closures

    def is_over(self, worker: int, life: int, closure: Queued) -> bool:
        """Whether a per-worker value is made once more since its closure was taken, in `life`."""
        return closure.round is None and self._lives[worker] != life

    def renew(self, worker: int, life: int) -> bool:
        """Has the values of a worker made again, before all else, if this is another life of it.

        Returns:
          Whether it is.
        """
        if self._lives[worker] == life:
            return False
        self._lives[worker] = life
        again, waiting = self._resources.of(worker), self._waiting[worker]
        for resource in again:
            resource.renew()
        joined = [closure for closure in waiting if closure.round is not None]
        waiting.clear()
        waiting.extend([*(r.closure for r in again), *joined])
        return True
