"""The input of workers that take their next batch while they train on the one that they hold."""

import math
from collections.abc import Callable

from tfps.training.feeds import Feed, Work, WorkAhead


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
        self.lives = feed.lives
        self._ended = ended
        self._held: list[Work | None] = [None] * num_workers
        self._last: list[Work | None] = [None] * num_workers
        self._called: list[WorkAhead | None] = [None] * num_workers

    def take(self, worker: int, most: float = math.inf) -> WorkAhead | None:
        """The worker's next call, or None if it holds no batch and there is no next batch."""
        return self._call(worker, None if self._ended() else self._feed.take(worker, most))

    def _call(self, worker: int, following: Work | None) -> WorkAhead | None:
        last = self._last[worker] if following is None else following
        if last is None or (following is None and self._held[worker] is None):
            return None
        self._last[worker] = last
        self._called[worker] = work = WorkAhead(last, self._held[worker], following)
        return work

    def done(self, worker: int, work: WorkAhead, steps: int) -> None:
        """Notes whether there was a next batch, which the worker holds now."""
        self._called[worker] = None
        self._held[worker] = work.following if steps else None
        if work.following is not None:
            self._feed.done(worker, work.following, steps)

    def give_back(self, worker: int, work: WorkAhead, begin: int) -> None:
        """See `feeds.WorkSource`.

        The next batch is given back in any case, since it was not trained on.

        Args:
          worker: index of the worker that was to make the call.
          work: what `take` or `repeat` returned.
          begin: 0 if the batch that the worker held was not trained on, and 1 if it was; of no
            effect if the worker held none.
        """
        if self._called[worker] is work:
            self._called[worker] = self._held[worker] = None
        if work.held is not None:
            self._feed.give_back(worker, work.held, begin)
        if work.following is not None:
            self._feed.give_back(worker, work.following, 0)

    def left(self, worker: int) -> None:
        """See `feeds.WorkSource`; a batch that an idle worker holds is given back."""
        held, called = self._held[worker], self._called[worker]
        if called is None and held is not None:
            self._feed.give_back(worker, held, 0)
        self._held[worker] = self._last[worker] = None
        self._feed.left(worker)

    def back(self, worker: int) -> None:
        """See `feeds.WorkSource`."""
        self._feed.back(worker)
