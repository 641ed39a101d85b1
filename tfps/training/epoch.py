"""One epoch of training."""

import time
from collections.abc import Callable
from typing import Any

from tfps import errors
from tfps.training import callbacks as traits
from tfps.training.exported_state import OpenEpoch
from tfps.training.feeds import Feed
from tfps.training.hooks import Hooks
from tfps.training.metric_totals import MetricTotals
from tfps.training.policy import ConsistencyPolicy
from tfps.training.policy_run import PolicyRun
from tfps.training.session import Session
from tfps.training.snapshotter import Snapshotter
from tfps.worker.tally import Report


class Epoch:
    """Trains over a feed once, under whatever policy is in force, and calls the batch hooks.

    It is the `policy_run.Observer` of its runs.
    """

    def __init__(
        self,
        session: Session,
        feed: Feed,
        hooks: Hooks,
        policy: Callable[[], ConsistencyPolicy],
        snapshotter: Snapshotter | None = None,
        opened: OpenEpoch | None = None,
    ):
        """Starts with empty totals, or with those of an epoch that was cut.

        Args:
          session: prepared for training.
          feed: of the input.
          hooks: of the user's callbacks.
          policy: gives the policy to follow. When the policy changes, workers first train on the
            batches that they hold.
          snapshotter: saves the state at cuts within the epoch; None if nobody does.
          opened: what the epoch goes on from; None if it begins with its first batch.
        """
        self._snapshotter = snapshotter
        self._session, self._state = session, session.state
        self._model = session.model
        self._feed = feed
        self._hooks = hooks
        self._policy = policy
        self._program = session.served.program
        self._auto = session.auto
        self._totals = MetricTotals(
            self._program, session.merging(feed, train=True), self._program.logs
        )
        self._steps, self._seconds = 0, 0.0
        if opened is not None:
            self._steps, self._seconds = opened.batches, opened.seconds
            self._totals.restore(
                opened.tally, opened.totals, opened.latest, opened.extras, session.calls.living
            )
        self._has_begun = bool(self._steps)  # whether a batch was given out
        self._is_over = False  # whether the hook after a batch has stopped training
        store = session.served.store
        self._copy, self._counted = store.copy, store.optimizer_copy.updates
        self._counted.count = self._state.updates()

    @property
    def staleness(self) -> Any:
        """float64 [n], pushes by the number of updates that they missed; see `tally.Tally`."""
        return self._totals.tally.staleness

    @property
    def stats(self) -> dict[str, float]:
        """What the epoch cost, once it has run; see `Trainer.stats`."""
        tally, steps = self._totals.tally, max(1, self._steps)
        return {
            "examples_per_second": self._totals.examples / self._seconds,
            "steps_per_second": self._steps / self._seconds,
            "staleness": tally.total_staleness / max(1.0, tally.pushes),
            "staleness_max": tally.max_staleness,
            "push_bytes_per_step": tally.bytes_up / steps,
            "pull_bytes_per_step": tally.bytes_down / steps,
        }

    def run(self, final: bool = True) -> dict[str, float]:
        """Trains; returns the epoch's logs, as Keras has them.

        Args:
          final: see `MetricTotals.logs`.

        Raises:
          DataError: there was no batch.
        """
        self._started = time.perf_counter() - self._seconds
        self._feed.begin_epoch()
        totals = self._totals
        self._state.own.begin(self._program, self._feed, totals.carried, totals.carried_by)
        totals.shared = self._state.own.shared
        self._steps = self._train(self._steps)
        if self._snapshotter is not None:
            # A snapshot may follow any time before the epoch is noted.
            self._note(self._steps)
        self._feed.end_epoch()
        self._seconds = time.perf_counter() - self._started
        if not self._totals.examples and not self._model.stop_training:
            raise errors.DataError("fit was given no batch; the input is empty")
        self._state.own.copy()
        # The servers do not count updates that loss scaling has skipped.
        self._counted.count = self._state.updates()
        self._copy.outdate()
        return self._totals.logs(final)

    def _train(self, steps: int) -> int:
        while True:
            self._following = self._policy()
            self._warming = self._is_warming(self._following)
            side = self._session.enter(self._following, self._warming)
            run = PolicyRun(self._session, self._feed, self._following, side)
            self._outer = side.outer is not None
            if self._auto is not None:
                self._auto.begin_run()
            steps = run.follow(self, steps)
            if self.stopped() or not self.has_changed():
                return steps
            if self._chooses():
                self._session.choose_codecs(self._following)
            self._save(steps)
            if self.stopped():  # An evaluator has asked for it.
                return steps

    def _save(self, steps: int) -> None:
        """Takes a snapshot if one is due; there is a cut now."""
        if self._snapshotter is not None and self._snapshotter.is_due:
            self._note(steps)
            self._snapshotter.take()

    def _note(self, steps: int) -> None:
        """Notes how far the epoch has come; there is a cut now."""
        seconds, totals = time.perf_counter() - self._started, self._totals
        opened = OpenEpoch(steps, seconds, totals.tally, *totals.state())
        self._state.note_open(opened, self._feed.position())

    def _is_warming(self, policy: ConsistencyPolicy) -> bool:
        return self._state.is_warming(policy, self._counted.count - self._state.chief.outer_updates)

    # What a run tells.

    def began(self, first: int) -> None:
        """Calls the hook of a batch that is about to be trained on."""
        self._has_begun = True
        self._state.chief.batch_hooks += 1
        self._hooks.batch_begin(first)
        self._state.own.load_if_changed()

    def ended(self, last: int, report: Report) -> None:
        """Counts some work, and calls the hook of its last batch.

        As in Keras, no hook of a batch follows the one after which training stops. What other
        workers were doing meanwhile is counted.
        """
        self.counts(report)
        if self._auto is not None:
            self._auto.ended(report.steps)
        if self._hooks.watches_batches and not self._is_over:
            self._state.own.copy(report.worker)
            index = traits.end_index(last, self._feed.group)
            before = self.stopped()
            self._hooks.batch_end(index, self._totals.logs())
            self._state.own.load_if_changed()
            self._is_over = self.stopped() and not before

    def lost(self, worker: int) -> None:
        """Keeps what a lost worker has reported of metrics that workers carry."""
        self._totals.retire(worker)

    def returned(self, worker: int) -> None:
        """See `policy_run.Observer`."""

    def defers(self) -> bool:
        """Whether nobody looks at the totals before the run is over."""
        counts = self._snapshotter is not None and self._snapshotter.counts_updates
        return not (self._hooks.watches_batches or self._warming or counts)

    def counts(self, report: Report) -> None:
        """Adds a report to the totals."""
        if not report.is_known:
            return
        updates = int(report.tally.updates)
        self._counted.count += updates
        if self._snapshotter is not None:
            self._snapshotter.counts(updates)
        self._copy.outdate()
        if self._outer:
            self._state.chief.outer_updates += updates
        self._totals.add(report)

    def stopped(self) -> bool:
        """Whether a callback has set `stop_training`.

        As in Keras, an epoch that has begun has a batch, even if it was stopped before.
        """
        return self._model.stop_training and self._has_begun

    def has_changed(self) -> bool:
        """Whether there is to be a cut.

        One is due for a snapshot, another policy, the end of the warm-up, or a choice of codecs.
        """
        if self._snapshotter is not None and self._snapshotter.is_due:
            return True
        policy = self._policy()
        if policy is not self._following or self._is_warming(policy) != self._warming:
            return True
        return self._chooses()

    def _chooses(self) -> bool:
        """Whether codecs are to be chosen."""
        return self._auto is not None and self._auto.is_due(self._warming)
