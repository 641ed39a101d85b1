"""Evaluating a model on the workers."""

from collections.abc import Callable
from typing import Any

import keras

from tfps.model.inspection import count_candidates
from tfps.training import callbacks as traits
from tfps.training.feeds import Feed, Work
from tfps.training.given import Redo
from tfps.training.metric_totals import MetricTotals
from tfps.training.reports import Reports
from tfps.training.session import Session
from tfps.training.work_loop import WorkLoop
from tfps.worker.tally import Report

# Works of a worker whose reports may stay there; see `policy_run`.
_UNREPORTED = 32


class EvaluationRun:
    """A `work_loop.Run` that evaluates every batch with the same parameters."""

    def __init__(
        self,
        session: Session,
        feed: Feed,
        callbacks: keras.callbacks.CallbackList,
        leaves: Callable[[], bool] = lambda: False,
    ):
        """Traces the step, unless that has been done before, and pulls the parameters.

        Args:
          session: prepared.
          feed: of the input.
          callbacks: of the user.
          leaves: whether the process is about to end, so that nobody needs the result.
        """
        self._leaves = leaves
        self._session, self._own = session, session.state.own
        self._feed = feed
        self._callbacks = callbacks
        self._watches_batches = any(map(traits.has_test_batch_hooks, callbacks.callbacks))
        self._has_begun = False  # whether a batch was given out
        self._is_over = False  # whether the hook after a batch has stopped the evaluation
        self._step = session.steps.evaluation(feed)
        self._pulled = session.pull()
        self._handles = session.served.store.handles()
        self._program = session.served.program
        for count in count_candidates(self._program):
            # A metric may show a schedule's rate, and the graph reads the variable without asking.
            _ = count.value

    def evaluate(self) -> MetricTotals:
        """Runs over the feed, from its first batch; returns the totals."""
        self._begins_again = True
        while self._begins_again:
            self._begins_again = False
            self._unreported: dict[int, list[Work]] = {}
            self._totals = self._fresh()
            self._feed.reset()  # Every validation sees the same batches.
            self._feed.begin_epoch()
            with self._own.aside():
                self._run()
            self._feed.end_epoch()
        return self._totals

    def _fresh(self) -> MetricTotals:
        session = self._session
        merging = session.merging(self._feed, train=False)
        return MetricTotals(self._program, merging, self._step.own.logs)

    def _run(self) -> None:
        own = self._own
        own.begin(self._program, self._feed, self._totals.carried)
        self._totals.shared = own.shared
        calls = self._session.calls
        self._reports = Reports(calls, self._step.own, defers=not self._watches_batches)
        own.report(self._reports.blanks)
        loop = WorkLoop(calls, self._feed, self)
        loop.run()
        while True:
            vectors = [one.report[0] if one.report else None for one in own.each]
            for report in self._reports.bring(calls, vectors):
                self._totals.add(report)
                self._unreported[report.worker] = []
            if not calls.events:
                break
            loop.run()
        own.copy()

    def call(self, worker: int, work: Work) -> Callable[[], Report]:
        """See `work_loop.Run`."""

        step, handles, pulled = self._step, self._handles, self._pulled[worker]
        each, number = self._own.each, self._session.number_batches(work.count)
        unreported = self._unreported.setdefault(worker, [])
        unreported.append(work)
        defers = len(unreported) <= _UNREPORTED
        replace, reports = self._own.replacement(worker), self._reports

        def call() -> Report:
            replace()
            own, first = each[worker], number
            for part in work.steps:
                vector, own = step(handles, pulled, part.source, own, part.count, first)
                own, first = own._replace(report=[vector]), first + part.count
            report, following = reports.take(worker, work, vector, defers)
            each[worker] = own._replace(report=[following])
            return report

        return call

    def abandoned(self) -> None:
        """See `work_loop.Run`; nobody waits for the servers' answers."""

    def completed(self, worker: int, work: Work, result: Report) -> None:
        """See `work_loop.Run`."""
        if result.is_known:
            self._unreported[worker] = []

    def lost(self, worker: int, redo: Redo | None) -> list[Redo]:
        """See `work_loop.Run`; all that the worker has not reported is evaluated by others."""
        del redo
        for work in self._unreported.pop(worker, []):
            self._feed.give_back(worker, work, 0)
        self._own.lost(worker)
        self._reports.lost(worker)
        # What workers carry of metrics is lost with them.
        self._begins_again = self._begins_again or bool(self._totals.carried)
        return []

    def redo(self, worker: int, redo: Redo) -> tuple[Work, Callable[[], Report]]:
        """See `work_loop.Run`; never called, since `lost` names nothing to be done again."""
        raise AssertionError(f"an evaluation gives back what is lost, and has no {redo}")

    def redo_ended(self, worker: int, work: Any, taken: int) -> None:
        """See `redo`."""

    def counts(self, result: Any) -> None:
        """See `redo`."""

    def leaving(self, worker: int) -> None:
        """See `work_loop.Run`; the worker is soon lost, and its batches are computed again."""

    def left(self, worker: int, value: Any) -> None:
        """See `work_loop.Run`; no worker hands back anything."""

    def returned(self, worker: int) -> Callable[[], Any]:
        """See `work_loop.Run`; the worker pulls the parameters, which are still the same."""
        del worker
        pull, handles = self._session.steps.pull(), self._handles
        revived, blank = self._own.revived(), self._step.own.blank
        return lambda: (pull(handles), revived(), blank())

    def begins(self, worker: int, value: Any) -> None:
        """See `work_loop.Run`."""
        self._pulled[worker], own, blank = value
        self._reports.blanks[worker] = blank
        self._reports.lost(worker)  # A call of the earlier life may have ended after all.
        self._own.each[worker] = own._replace(report=[blank])

    def began(self, first: int) -> None:
        """See `work_loop.Run`."""
        self._has_begun = True
        self._callbacks.on_test_batch_begin(first)
        self._own.load_if_changed()

    def ended(self, last: int, first: int, result: Any) -> None:
        """See `work_loop.Run`; as in Keras, no batch counts after the one with which it stops."""
        del first
        if self._is_over:
            return
        if result.is_known:
            self._totals.add(result)
        if self._watches_batches:
            self._own.copy(result.worker)
            index = traits.end_index(last, self._feed.group)
            before = self.stopped()
            self._callbacks.on_test_batch_end(index, self._totals.logs())
            self._own.load_if_changed()
            self._is_over = self.stopped() and not before

    def stopped(self) -> bool:
        """Whether a callback has set `stop_evaluating`, or the process is about to end.

        As in Keras, there is a batch even if a callback has stopped before.
        """
        return (self._session.model.stop_evaluating and self._has_begun) or self._leaves()
