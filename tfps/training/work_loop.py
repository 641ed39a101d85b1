"""Handing out work: which worker runs what next, and what happens when it is done."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np

from tfps import _keras
from tfps.cluster.calls import Completion, WorkerCalls
from tfps.model.stateless_model import StatelessModel
from tfps.training.schedule import Clocks, Rounds
from tfps.worker.tally import Report, nothing, sum_of


class WorkLoop:
    """Runs a feed on the workers.

    Hooks are called from here, one at a time, and a worker gets its next work
    only after the hooks of its last one: with one worker, what a hook changes
    holds for the very next batch, as in Keras.
    """

    def __init__(
        self,
        dispatcher: WorkerCalls,
        feed,
        prepare: Callable[[int, Any], Callable[[], Any]],
        on_begin: Callable[[int], None],
        on_end: Callable[[int, int, Any], None],
        schedule: Clocks | Rounds | None = None,
        push: Callable[[int, float, int], Callable[[], Any]] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        first: int = 0,
    ):
        """Keeps its arguments.

        Args:
          dispatcher: of the cluster.
          feed: a `data.ChiefFeed`, `data.WorkerFeed` or `data.Lookahead`, whose epoch has
            begun.
          prepare: `(worker, work)` -> the call to make on the worker; its result has
            attributes `steps`, the batches that it used, and `taken`; see `Report`.
          on_begin: called with the index of the first batch of each piece of work that
            has one.
          on_end: called with the index of the last batch completed so far, the index
            of the work's first batch, and the result.
          schedule: who may start when; by default, everybody always. Results of
            steps that it holds back are `Report`s.
          push: `(worker, share, expected)` -> the call that pushes what was held
            back; its `Report` is added to the result.
          stopped: true: nothing is begun any more; work under way is finished.
          first: index of the first batch.
        """
        self._dispatcher = dispatcher
        self._feed = feed
        self._prepare, self._push = prepare, push
        self._on_begin, self._on_end = on_begin, on_end
        self._schedule = schedule or Clocks()
        self._stopped = stopped
        self._begun = self._ended = first
        self._idle = collections.deque(range(dispatcher.num_workers))
        self._held: dict[int, tuple] = {}  # worker -> (index of its first batch, result)

    def run(self) -> int:
        """Returns the index after the last batch, when the feed is at its end or it is stopped."""
        try:
            while True:
                self._start()
                self._push_due()
                if not self._dispatcher.pending:
                    return self._ended
                self._complete(self._dispatcher.next())
        except BaseException:
            # Nothing of this may come back as a result of something later.
            self._dispatcher.drain()
            raise

    def _start(self) -> None:
        # Whoever leaves may have been the one that others wait for.
        waiting = list(self._idle)
        while waiting != (waiting := self._start_some(waiting)):
            pass

    def _start_some(self, workers: list[int]) -> list[int]:
        """Gives each of these work; returns those that have to wait."""
        waiting = []
        for worker in workers:
            if self._stopped():
                self._schedule.leave(worker)
                continue
            self._schedule.join(worker)
            steps = self._schedule.allowance(worker)
            if not steps:
                waiting.append(worker)
                continue
            work = self._feed.take(worker, steps)
            if work is None:
                # Nobody has to wait for a worker without data.
                self._schedule.leave(worker)
                continue
            self._idle.remove(worker)
            self._schedule.started(worker)
            if work.count:
                self._on_begin(self._begun)
            call = self._prepare(worker, work)
            self._dispatcher.submit(worker, call, tag=(self._begun, work))
            self._begun += work.count
        return waiting

    def _push_due(self) -> None:
        due = self._schedule.due()
        for worker, share in due.items():
            self._dispatcher.submit(worker, self._push(worker, share, len(due)))

    def _complete(self, completion: Completion) -> None:
        worker, result = completion.worker, completion.value
        if completion.tag is None:
            first, computed = self._held.pop(worker)
            self._schedule.pushed(worker)
            self._settle(worker, first, computed + result)
            return
        first, work = completion.tag
        self._feed.done(worker, work, result.taken)
        if self._schedule.finished(worker, result.steps, _weight(result)):
            self._held[worker] = first, result
        else:
            self._settle(worker, first, result)

    def _settle(self, worker: int, first: int, result) -> None:
        self._idle.append(worker)
        self._ended += result.steps
        if result.steps:
            self._on_end(self._ended - 1, first, result)


def _weight(result) -> float:
    """What a result counts in a round: its examples, unless the gradients overflowed."""
    if not isinstance(result, Report):
        return 0.0
    return result.tally.examples if result.tally.good else 0.0


class MetricTotals:
    """The model's metrics over the reports of all workers.

    Keras declares metric variables as sums over replicas; so the changes that
    workers report add up, in whatever order they come.
    """

    def __init__(self, program: StatelessModel):
        program.model.reset_metrics()
        self._program = program
        self._totals = [np.asarray(v.numpy(), np.float64) for v in program.metrics]
        self.tally = nothing()

    @property
    def examples(self) -> int:
        return int(self.tally.examples)

    def add(self, report: Report) -> None:
        """Adds what a report says."""
        self.tally = sum_of(self.tally, report.tally)
        self._totals = [t + c for t, c in zip(self._totals, report.metrics, strict=True)]

    def logs(self) -> dict:
        """Metric name -> float, as `keras.Model.get_metrics_result`."""
        return _keras.to_floats(self._program.publish(self._totals))
