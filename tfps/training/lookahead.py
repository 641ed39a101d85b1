"""The input of workers that take their next batch while they train on the one that they hold."""

import math
from collections.abc import Callable
from typing import Any

from tfps.training.feeds import Feed, WorkAhead


class Lookahead:
    """A `feeds.WorkSource` over a feed whose steps prefetch (`WorkerStep.prefetches`).

    The first call of a worker trains on nothing, and its last call takes nothing.
    """

    def __init__(self, feed: Feed, num_workers: int, ended: Callable[[], bool]):
        """Starts with workers that hold no batch.

        Args:
          feed: of single plain batches; its epoch has begun.
          num_workers: of the cluster.
          ended: true once no further batch is to be taken.
        """
        self._feed = feed
        self._ended = ended
        self._holds = [False] * num_workers
        self._sources: list[Any] = [None] * num_workers

    def take(self, worker: int, most: float = math.inf) -> WorkAhead | None:
        """The worker's next call, or None if it holds no batch and there is no next batch."""
        following = None if self._ended() else self._feed.take(worker, most)
        if following is not None:
            self._sources[worker] = following.source
        elif not self._holds[worker]:
            return None
        return WorkAhead(self._sources[worker], int(self._holds[worker]), following)

    def done(self, worker: int, work: WorkAhead, steps: int) -> None:
        """Notes whether there was a next batch, which the worker holds now."""
        self._holds[worker] = steps > 0
        if work.following is not None:
            self._feed.done(worker, work.following, steps)
