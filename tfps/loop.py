"""Handing out work: which worker runs what next, and what happens when it is done."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np

from tfps import _keras
from tfps.dispatcher import Dispatcher
from tfps.program import Program
from tfps.report import Report, Tally


def drive(
    dispatcher: Dispatcher,
    feed,
    prepare: Callable[[int, Any], Callable[[], Any]],
    on_begin: Callable[[int], None],
    on_end: Callable[[int, int, Any], None],
    may_start: Callable[[int, list[int]], bool] = lambda worker, steps: True,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Runs one epoch of a feed on the workers.

    Hooks are called from here, one at a time, and a worker gets its next work
    only after the hooks of its last one: with one worker, what a hook changes
    holds for the very next batch, as in Keras.

    Args:
      dispatcher: of the cluster.
      feed: a `data.ChiefFeed` or `data.WorkerFeed`.
      prepare: `(worker, work)` -> the call to make on the worker; its result has
        an attribute `steps`, the batches that it used.
      on_begin: called with the index of the first batch of each piece of work.
      on_end: called with the index of the last batch completed so far, the index
        of the work's first batch, and the result.
      may_start: the consistency policy; given the steps completed by each worker.
      stopped: true ends the epoch; work under way is finished.

    Returns:
      Batches completed.
    """
    steps = [0] * dispatcher.num_workers
    idle = collections.deque(range(dispatcher.num_workers))
    begun = ended = 0
    feed.begin_epoch()
    try:
        while True:
            for worker in list(idle):
                if stopped() or not may_start(worker, steps):
                    continue
                work = feed.take(worker)
                if work is None:
                    continue
                idle.remove(worker)
                on_begin(begun)
                dispatcher.submit(worker, prepare(worker, work), tag=(begun, work))
                begun += work.count
            if not dispatcher.pending:
                break
            worker, (first, work), result = dispatcher.next()
            idle.append(worker)
            feed.done(worker, work, result.steps)
            steps[worker] += result.steps
            ended += result.steps
            if result.steps:
                on_end(ended - 1, first, result)
    except BaseException:
        # Nothing of this epoch may come back as a result of the next one.
        dispatcher.drain()
        raise
    feed.end_epoch()
    return ended


class MetricTotals:
    """The model's metrics over the reports of all workers.

    Keras declares metric variables as sums over replicas; so the changes that
    workers report add up, in whatever order they come.
    """

    def __init__(self, program: Program):
        program.model.reset_metrics()
        self._program = program
        self._totals = [np.asarray(v.numpy(), np.float64) for v in program.metrics]
        self.tally = Tally()

    @property
    def examples(self) -> int:
        return int(self.tally.examples)

    def add(self, report: Report) -> None:
        """Adds what a report says."""
        most = max(self.tally.max_staleness, report.tally.max_staleness)
        added = Tally(*(a + b for a, b in zip(self.tally, report.tally, strict=True)))
        self.tally = added._replace(max_staleness=most)
        self._totals = [t + c for t, c in zip(self._totals, report.metrics, strict=True)]

    def logs(self) -> dict:
        """Metric name -> float, as `keras.Model.get_metrics_result`."""
        return _keras.to_floats(self._program.publish(self._totals))
