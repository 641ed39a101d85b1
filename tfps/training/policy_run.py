"""Training under one policy: from the start of the workers to the end of what they hold."""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from tfps.model import optimizer_traits
from tfps.training.feeds import Feed, WorkSource
from tfps.training.lookahead import Lookahead
from tfps.training.policy import ConsistencyPolicy
from tfps.training.reports import Reports
from tfps.training.schedule import Clocks
from tfps.training.server_side import ServerSide
from tfps.training.session import Session
from tfps.training.work_loop import RoundLoop, WorkLoop
from tfps.worker.tally import Report
from tfps.worker.worker_step import RoundStep

# s after which the learning rate is read again though no hook has run.
_RATE_LASTS = 0.1


class Observer(Protocol):
    """Who is told what becomes of the batches: the epoch."""

    def began(self, first: int) -> None:
        """See `work_loop.Run`."""

    def ended(self, last: int, report: Report) -> None:
        """Some work is done; see `work_loop.Run`."""

    def counts(self, report: Report) -> None:
        """A push without a batch is done, or it is known what work came to that is done."""

    def defers(self) -> bool:
        """Whether it is enough to know at the end of a run what its work came to."""

    def stopped(self) -> bool:
        """Whether training is to stop."""

    def has_changed(self) -> bool:
        """Whether training is to go on in another way: a new policy, or the end of the warm-up."""


class PolicyRun:
    """A `work_loop.RoundRun`: the calls by which workers train under a policy.

    `follow` does all of it. It starts the workers, runs a loop over the feed, and finishes.
    """

    def __init__(self, session: Session, feed: Feed, policy: ConsistencyPolicy, side: ServerSide):
        """Traces the step, unless that has been done before.

        Args:
          session: prepared for training.
          feed: whose epoch has begun.
          policy: to follow.
          side: the servers' side of the policy's exchange.
        """
        self._session, self._state = session, session.state
        self._calls = session.calls
        self._feed = feed
        self._policy = policy
        self._side = side
        # A call of a round, or of local steps, is one step that is pushed by another call.
        alike = policy.in_rounds or bool(policy.local_steps)
        feed.regroup(policy.steps_per_call(session.model.steps_per_execution), alike)
        self._step = session.steps.training(side, policy, feed)
        self._defers = False  # whether hooks of batches look at nothing
        self._last_rate, self._rate_read = 0.0, -math.inf

    def follow(self, observer: Observer, first: int) -> int:
        """Trains until the feed ends, or until training is to stop or to go on in another way.

        Args:
          observer: the epoch.
          first: index of the first batch.

        Returns:
          The index after the last batch.
        """
        self._observer = observer
        self._defers = observer.defers()
        schedule = self._policy.schedule()
        # A schedule of the user's own may go by the weights, which only reports have.
        defers = self._defers and type(schedule).finished is Clocks.finished
        self._reports = Reports(self._calls, self._step.own, defers)
        self._start()
        ended = False
        loop = RoundLoop if self._policy.in_rounds else WorkLoop
        try:
            last = loop(self._calls, self._source(), self, schedule, first).run()
            self._bring_reports()
            self._push_pending()
            self._actors.stop()
            ended = True
        finally:
            if not ended:
                self._side.abort()
            # After an error, too, what workers remember is what the next run goes on from.
            self._keep_memory()
        return last

    def _start(self) -> None:
        self._side.pusher.clear()
        self._actors = self._side.actors()
        self._handles = [self._actors.handles(w) for w in range(self._calls.num_workers)]
        self._actors.start(self._calls.interrupt)
        # Nothing else may hold the memory, or the tensors would stay on the workers.
        memory = self._state.take_memory(self._side.exchange)
        self._state.carries = self._calls.run_on_each(
            lambda worker: self._step.start(self._handles[worker], memory[worker])
        )
        self._state.own.report(self._reports.blanks)

    def _source(self) -> WorkSource:
        if not self._step.prefetches:
            return self._feed
        # When training goes on in another way, workers first train on the batches that they hold.
        return Lookahead(self._feed, self._calls.num_workers, self._observer.has_changed)

    def call(self, worker: int, work: Any) -> Callable[[], Report]:
        """See `work_loop.Run`."""
        number, rate = self._state.number_steps(work.takes), self._rate()
        # A call that hangs must not keep the trainer alive, so it holds only what it needs.
        step, handles, carries = self._step, self._handles[worker], self._state.carries
        each, replace = self._state.own.each, self._state.own.replacement(worker)
        reports = self._reports

        def call() -> Report:
            replace()
            own, first = each[worker], number
            for part in work.steps:
                vector, carries[worker], own = step(
                    handles, part.source, carries[worker], own, part.takes, first, rate
                )
                own, first = own._replace(report=[vector]), first + part.takes
            report, following = reports.take(worker, work, vector)
            each[worker] = own._replace(report=[following])
            return report

        return call

    def push(self, worker: int, share: float, expected: int) -> Callable[[], Report]:
        """See `work_loop.RoundRun`."""
        number, rate = self._state.number_steps(1), self._rate()
        step, handles = cast(RoundStep, self._step), self._handles[worker]
        carries = self._state.carries

        def call() -> Report:
            vector, carries[worker] = step.push(
                handles, carries[worker], number, share, expected, rate
            )
            return Report.of(vector, step.own.shapes, worker)

        return call

    def began(self, first: int) -> None:
        """See `work_loop.Run`."""
        self._observer.began(first)

    def ended(self, last: int, first: int, result: Report) -> None:
        """See `work_loop.Run`."""
        del first
        self._observer.ended(last, result)

    def stopped(self) -> bool:
        """See `work_loop.Run`; a step that prefetches ends by its `Lookahead`."""
        changed = not self._step.prefetches and self._observer.has_changed()
        return self._observer.stopped() or changed

    def _bring_reports(self) -> None:
        """Tells the observer what workers have not reported yet."""
        vectors = [own.report[0] for own in self._state.own.each]
        for report in self._reports.bring(self._calls, vectors):
            self._observer.counts(report)

    def _push_pending(self) -> None:
        rate, carries = self._rate(), self._state.carries
        vectors = self._calls.run_on_each(
            lambda worker: self._step.finish(self._handles[worker], carries[worker], rate)
        )
        for worker, vector in enumerate(vectors):
            if vector is not None:
                self._observer.counts(Report.of(vector, self._step.own.shapes, worker))

    def _keep_memory(self) -> None:
        memory = [self._step.rest(carry) for carry in self._state.carries]
        self._state.keep_memory(self._side.exchange, memory)
        self._state.carries = []

    def _rate(self) -> float:
        # Where no hook runs between batches, only another thread could change the rate, which
        # takes effect within a tenth of a second.
        now = time.monotonic()
        if not self._defers or now > self._rate_read + _RATE_LASTS:
            self._last_rate, self._rate_read = self._read_rate(), now
        return self._last_rate

    def _read_rate(self) -> float:
        return optimizer_traits.rate_now(self._session.served.rate)
