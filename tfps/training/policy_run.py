"""Training under one policy: from the start of the workers to the end of what they hold."""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import tensorflow as tf

from tfps.model import optimizer_traits
from tfps.training.feeds import Feed, Work, WorkAhead, WorkSource
from tfps.training.given import GivenWorks, Redo
from tfps.training.given_rounds import GivenRounds
from tfps.training.lookahead import Lookahead
from tfps.training.policy import ConsistencyPolicy
from tfps.training.repeating import Repeating
from tfps.training.reports import Reports
from tfps.training.schedule import Clocks
from tfps.training.server_side import ServerSide
from tfps.training.session import Session
from tfps.training.work_loop import RoundLoop, WorkLoop
from tfps.worker.tally import Report
from tfps.worker.worker_step import RoundStep

# s after which the learning rate is read again though no hook has run.
_RATE_LASTS = 0.1

# Works of a worker whose reports may stay there. If the worker is lost, their metrics are computed
# again.
_UNREPORTED = 32


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

    def lost(self, worker: int) -> None:
        """A worker is lost; the others go on."""

    def returned(self, worker: int) -> None:
        """A lost worker takes part again."""

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
        self._calls, self._ledger, self._losses = session.calls, session.ledger, session.losses
        self._feed = feed
        self._policy = policy
        self._side = side
        # A call of a round, or of local steps, is one step that is pushed by another call.
        alike = policy.in_rounds or bool(policy.local_steps)
        feed.regroup(policy.steps_per_call(session.model.steps_per_execution), alike)
        self._step = session.steps.training(side, policy, feed)
        self._repeating = Repeating(session, side, policy, feed, self._step)
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
        kind = RoundLoop if self._policy.in_rounds else WorkLoop
        try:
            self._start()
            self._source = self._source_of(observer)
            loop = kind(self._calls, self._source, self, schedule, first)
            last = loop.run()
            while not self._is_finished():
                last = loop.run()
            self._losses.refused_pushes += self._actors.stop()
            self._ledger.end_run(observer.stopped())
        except BaseException as e:
            self._side.abort()
            self._calls.drain()  # From here on no loop of a server reports an error.
            self._ledger.break_run(e)
            raise
        finally:
            # After an error, too, what workers remember is what the next run goes on from.
            self._keep_memory()
        return last

    def _start(self) -> None:
        self._state.carries = []
        self._calls.ask(self._side.pusher.clear)
        self._actors = self._calls.ask(self._side.actors)
        run = self._ledger.begin_run(
            self._calls.lives,
            self._side.pusher.written_to(),
            self._policy.in_rounds,
            self._reasons_to_drop(),
        )
        self._actors.start(
            self._calls.lives, self._calls.interrupt, run, self._calls.require_servers
        )
        lives, actors, step = list(self._calls.lives), self._actors, self._step
        self._handles = self._calls.run_on_each(lambda w: actors.handles(w, lives[w]))
        handles = self._handles
        # Nothing else may hold the memory, or the tensors would stay on the workers.
        memory = self._state.take_memory(self._side.exchange)
        self._state.carries = self._calls.run_on_each(lambda w: step.start(handles[w], memory[w]))
        self._state.own.report(self._reports.blanks)
        self._given, self._rounds = GivenWorks(self._calls.num_workers), GivenRounds()

    def _reasons_to_drop(self) -> list[str]:
        """Why this policy may drop a unit; see `Ledger.begin_run`."""
        late = self._policy.in_rounds and getattr(self._policy, "backups", 1) > 0
        overflow = self._session.served.store.loss_scale is not None
        return ["late"] * late + ["overflow"] * overflow

    def _source_of(self, observer: Observer) -> WorkSource:
        if not self._step.prefetches:
            return self._feed
        # When training goes on in another way, workers first train on the batches that they hold.
        return Lookahead(self._feed, self._calls.num_workers, observer.has_changed)

    def call(self, worker: int, work: Any) -> Callable[[], Report]:
        """See `work_loop.Run`."""
        number, rate = self._state.number_steps(work.takes), self._rate()
        self._give(worker, number, work)
        # A call that hangs must not keep the trainer alive, so it holds only what it needs.
        step, handles, carries = self._step, self._handles[worker], self._state.carries
        each, replace = self._state.own.each, self._state.own.replacement(worker)
        reports, carry = self._reports, carries[worker]
        defers = self._given.unreported(worker) < _UNREPORTED

        def call() -> Report:
            replace()
            own, first, kept = each[worker], number, carry
            for part in work.steps:
                vector, kept, own = step(handles, part.source, kept, own, part.takes, first, rate)
                own, first = own._replace(report=[vector]), first + part.takes
            report, following = reports.take(worker, work, vector, defers)
            carries[worker], each[worker] = kept, own._replace(report=[following])
            return report

        return call

    def _give(self, worker: int, number: int, work: Any) -> None:
        """Notes what is lost if the worker is."""
        if self._policy.in_rounds:
            self._rounds.give(worker, number, work)
            self._note(worker, number, work)
            return
        following = work.following if isinstance(work, WorkAhead) else work
        if following is not None:
            exchange = bool(self._policy.local_steps)
            self._given.give(worker, number, following, exchange)
            self._note(worker, number, following, 1 if exchange else following.count)

    def _note(self, worker: int, number: int, work: Work, units: int = 1) -> None:
        if self._ledger.folder is not None:
            self._ledger.gave(worker, number, self._feed.ranges(work), units)

    def push(self, worker: int, share: float, expected: int) -> Callable[[], Report]:
        """See `work_loop.RoundRun`."""
        number, rate = self._state.number_steps(1), self._rate()
        held = self._rounds.due(worker, number, share, expected)
        self._ledger.pushes(number, held.number)
        step, handles = cast(RoundStep, self._step), self._handles[worker]
        carries = self._state.carries
        carry = carries[worker]

        def call() -> Report:
            vector, carries[worker] = step.push(handles, carry, number, share, expected, rate)
            return Report.of(vector, step.own.shapes, worker)

        return call

    def began(self, first: int) -> None:
        """See `work_loop.Run`."""
        self._observer.began(first)

    def completed(self, worker: int, work: Any, result: Report) -> None:
        """See `work_loop.Run`."""
        following = work.following if isinstance(work, WorkAhead) else work
        if following is not None and result.taken < following.count:
            self._ledger.ends(self._feed.ranges(following))
            self._given.found(worker, following, result.taken)
        if self._policy.in_rounds:
            return
        done = work.held if isinstance(work, WorkAhead) else work
        self._given.done(worker, [] if done is None else [done], result.is_known)

    def ended(self, last: int, first: int, result: Report) -> None:
        """See `work_loop.Run`."""
        del first
        self._observer.ended(last, result)

    def dropped(self, worker: int) -> None:
        """See `work_loop.RoundRun`."""
        if (held := self._rounds.take(worker)) is not None:
            self._ledger.dropped(held.number, "late")

    def stopped(self) -> bool:
        """See `work_loop.Run`; a step that prefetches ends by its `Lookahead`."""
        changed = not self._step.prefetches and self._observer.has_changed()
        return self._observer.stopped() or changed

    def abandoned(self) -> None:
        """See `work_loop.Run`."""
        self._side.abort()

    # What is lost with a worker.

    def lost(self, worker: int, redo: Redo | None) -> list[Redo]:
        """See `work_loop.Run`."""
        self._ledger.lost(worker, self._calls.lives[worker])
        told = self._actors.fence(worker, self._calls.lives[worker])
        carry, self._state.carries[worker] = self._state.carries[worker], None
        self._losses.lost_workers += 1
        self._losses.say(f"worker {worker} was lost; {len(self._calls.living)} go on")
        if carry is not None and tf.nest.flatten(self._step.rest(carry).residuals):
            self._losses.lost_residuals += 1
        self._state.own.lost(worker)
        self._reports.lost(worker)
        self._observer.lost(worker)
        redos = []
        if redo is not None:
            redos.append(redo.known({p: one.repeated for p, one in told.items()}))
        given = self._rounds if self._policy.in_rounds else self._given
        loss = given.lose(worker, {p: one.last for p, one in told.items()})
        for work, begin in loss.back:
            self._feed.give_back(worker, work, begin)
        return redos + loss.redo

    def redo(self, worker: int, redo: Redo) -> tuple[Any, Callable[[], Report]]:
        """See `work_loop.Run`."""
        work = self._feed.repeat(redo.work, redo.begin, worker, redo.count)
        self._losses.repeated_units += 1
        repeating, rate = self._repeating, self._rate()
        handles, blank = self._handles[worker], self._reports.blanks[worker]
        if self._policy.in_rounds:
            held = self._rounds.lost(redo.number)
            return work, repeating.round(worker, redo, work, held, handles, blank, rate)
        return work, repeating.unit(worker, redo, work, handles, blank, rate)

    def redo_ended(self, worker: int, work: Any, taken: int) -> None:
        """See `work_loop.Run`."""
        self._feed.done(worker, work, taken)

    def counts(self, result: Report) -> None:
        """See `work_loop.Run`."""
        self._observer.counts(result)

    def leaving(self, worker: int) -> Callable[[], list[Report]]:
        """See `work_loop.Run`; the worker reports, and pushes what is pending."""
        step, handles, rate = self._step, self._handles[worker], self._rate()
        carry, own = self._state.carries[worker], self._state.own.each[worker]
        reports = self._reports

        def call() -> list[Report]:
            late = reports.end(worker, own.report[0]) if own.report else None
            vector = step.finish(handles, carry, rate)
            pushed = None if vector is None else Report.of(vector, step.own.shapes, worker)
            return [one for one in (late, pushed) if one is not None]

        return call

    def left(self, worker: int, value: list[Report]) -> None:
        """See `work_loop.Run`."""
        for report in value:
            self._observer.counts(report)
        self._given.settled(worker)
        self._rounds.take(worker)
        self._ledger.lost(worker, self._calls.lives[worker])
        self._actors.fence(worker, self._calls.lives[worker])
        carry, self._state.carries[worker] = self._state.carries[worker], None
        self._losses.say(f"worker {worker} was told to end, and has handed back what it held")
        if carry is not None and tf.nest.flatten(self._step.rest(carry).residuals):
            self._losses.lost_residuals += 1
        self._state.own.lost(worker)
        self._observer.lost(worker)

    def returned(self, worker: int) -> Callable[[], Any]:
        """See `work_loop.Run`."""
        actors, step, life = self._actors, self._step, self._calls.lives[worker]
        revived, blank = self._state.own.revived(), step.own.blank

        def begin() -> tuple:
            handles = actors.handles(worker, life)
            return handles, step.start(handles, None), revived(), blank()

        return begin

    def begins(self, worker: int, value: Any) -> None:
        """See `work_loop.Run`."""
        handles, carry, own, blank = value
        self._handles[worker], self._state.carries[worker] = handles, carry
        self._reports.blanks[worker] = blank
        self._reports.lost(worker)  # A call of the earlier life may have ended after all.
        self._state.own.each[worker] = own._replace(report=[blank])
        self._losses.say(f"worker {worker} takes part again")
        self._observer.returned(worker)

    # The end.

    def _is_finished(self) -> bool:
        """Brings reports, and pushes what is pending; whether nobody was lost meanwhile."""
        vectors = [own.report[0] if own.report else None for own in self._state.own.each]
        for report in self._reports.bring(self._calls, vectors):
            self._observer.counts(report)
            # If the worker is lost in what follows, nothing of this is counted again.
            self._given.done(report.worker, [], True)
            self._state.own.each[report.worker] = self._state.own.each[report.worker]._replace(
                report=[self._reports.blanks[report.worker]]
            )
        rate, carries, step, handles = self._rate(), self._state.carries, self._step, self._handles
        vectors = self._calls.run_on_each(lambda w: step.finish(handles[w], carries[w], rate))
        for worker, vector in enumerate(vectors):
            if vector is not None:
                self._observer.counts(Report.of(vector, self._step.own.shapes, worker))
        for worker in self._calls.living:
            self._given.settled(worker)
        if not self._calls.events:
            return True
        # What was pending is pushed: the others go on with nothing but their memory.
        again = self._calls.run_on_each(lambda w: step.start(handles[w], step.rest(carries[w])))
        for worker, carry in enumerate(again):
            if carry is not None:
                carries[worker] = carry
        return False

    def _keep_memory(self) -> None:
        if not self._state.carries:
            return  # The run was cut short before it took what is kept.
        memory = [None if c is None else self._step.rest(c) for c in self._state.carries]
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
