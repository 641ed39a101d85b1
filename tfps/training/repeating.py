"""The calls by which a worker does again what was lost with another one."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from tfps.store import mailbox
from tfps.training.feeds import Feed, Work
from tfps.training.given import Redo
from tfps.training.given_rounds import RoundWork
from tfps.training.policy import ConsistencyPolicy
from tfps.training.server_side import ServerSide
from tfps.training.session import Session
from tfps.worker.async_step import AsyncCarry
from tfps.worker.tally import Report
from tfps.worker.worker_step import Residuals, RoundStep, WorkerStep


class Repeating:
    """Makes the calls that repeat a unit of a lost worker, of one run."""

    def __init__(
        self,
        session: Session,
        side: ServerSide,
        policy: ConsistencyPolicy,
        feed: Feed,
        step: WorkerStep,
    ):
        """Nothing is traced before something is lost.

        Args:
          session: prepared for training.
          side: the servers' side of the policy's exchange.
          policy: of the run.
          feed: of the run.
          step: by which the workers train.
        """
        self._session, self._state = session, session.state
        self._side, self._policy, self._feed, self._step = side, policy, feed, step

    def unit(
        self, worker: int, redo: Redo, work: Work, handles: Any, blank: Any, rate: float
    ) -> Callable[[], Report]:
        """The call that repeats a unit; servers that have it already ignore it.

        Args:
          worker: that does it.
          redo: what was lost.
          work: its batches, once more.
          handles: of the worker's variables on the servers.
          blank: an empty report on the worker.
          rate: the learning rate.
        """
        repeats = mailbox.repeats_of(redo.has)
        carries, each = self._state.carries, self._state.own.each
        carry, own = carries[worker], each[worker]
        step = self._session.steps.repeating(self._side, self._policy, self._feed)
        masked, shapes = self._masked(redo.has), step.own.shapes
        whole = bool(self._policy.local_steps)
        counts = redo.counts
        # Every ps has made the update, and the report that would have said so is lost. Only the
        # outer optimizer's updates are counted by reports.
        is_made = whole and redo.has.issuperset(self._side.pusher.written_to())
        if not counts:
            own = own._replace(metrics=[*own.metrics])

        def call() -> Report:
            given = carry if whole else AsyncCarry(carry.residuals, {})
            vector, kept, after = step(
                handles, work.source, given, own._replace(report=[blank]), work.count,
                redo.number, rate, repeats,
            )  # fmt: skip
            residuals = _mixed(carry.residuals, kept.residuals, masked)
            kept = kept if whole else carry
            carries[worker] = kept._replace(residuals=residuals)
            if counts:
                each[worker] = after._replace(report=own.report)
            report = Report.of(vector, shapes, worker)
            if is_made:
                report = dataclasses.replace(report, tally=report.tally._replace(updates=1.0))
            return report if counts else report.of_push()

        return call

    def round(
        self,
        worker: int,
        redo: Redo,
        work: Work,
        held: RoundWork,
        handles: Any,
        blank: Any,
        rate: float,
    ) -> Callable[[], Report]:
        """The call that repeats what a worker was to push in a round.

        Args:
          worker, redo, work, handles, blank, rate: see `unit`.
          held: what the lost worker had been given.
        """
        repeats, carries = mailbox.repeats_of(redo.has), self._state.carries
        carry = carries[worker]
        own = self._state.own.each[worker]
        own = own._replace(report=[blank], metrics=[*own.metrics])
        step, masked = cast(RoundStep, self._step), self._masked(redo.has)

        def call() -> Report:
            # The worker's own push is done: what it has computed is of no use any more.
            vector, kept, _ = step(handles, work.source, carry, own, work.count, held.number, rate)
            taken = Report.of(vector, step.own.shapes, worker).taken
            assert held.push is not None
            vector, kept = step.push(
                handles, kept, held.push, held.share, held.expected, rate, repeats
            )
            before, after = step.rest(carry).residuals, step.rest(kept).residuals
            carries[worker] = step.with_residuals(kept, _mixed(before, after, masked))
            return dataclasses.replace(Report.of(vector, step.own.shapes, worker), taken=taken)

        return call

    def _masked(self, has: frozenset[int]) -> set[int]:
        """The buckets on these ps."""
        buckets = self._session.served.store.plan.buckets
        return {i for i, bucket in enumerate(buckets) if bucket.ps in has}


def _mixed(before: Residuals, after: Residuals, masked: set[int]) -> Residuals:
    """What a codec has not sent yet after a repeat that the ps of the masked buckets ignore.

    They have not got what the new residuals of these buckets would lack.
    """
    return {i: (before if i in masked else after)[i] for i in after}
