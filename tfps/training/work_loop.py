"""Handing out work: which worker runs what next, and what happens when the work is done."""

import collections
from collections.abc import Callable
from typing import Any, Protocol

from tfps import errors
from tfps.cluster.calls import Completion, WorkerCalls
from tfps.training.feeds import WorkSource
from tfps.training.schedule import Clocks, RoundSchedule, Schedule


class Result(Protocol):
    """What a call on a worker came to.

    Attributes:
      steps: how many batches the call has used.
      taken: how many batches the call has taken from its source.
      weight: what the call counts in a weighted mean of its round.
    """

    @property
    def steps(self) -> int:
        """See the class."""

    @property
    def taken(self) -> int:
        """See the class."""

    @property
    def weight(self) -> float:
        """See the class."""

    def __add__(self, other: Any) -> Any:
        """The result together with that of the push that followed; needed in rounds only."""


class Run(Protocol):
    """What a work loop runs: training under a policy, an evaluation, or a prediction.

    The loop calls all methods on the chief, from one thread.
    """

    def call(self, worker: int, work: Any) -> Callable[[], Result]:
        """The call that does some work on a worker; the loop makes it under that worker's device.

        Args:
          worker: index.
          work: what the loop's source gave for the worker.
        """

    def began(self, first: int) -> None:
        """Work is about to be given out whose first batch has this index."""

    def ended(self, last: int, first: int, result: Any) -> None:
        """Some work is done.

        Args:
          last: index of the last batch that is done, counted in the order in which batches end.
          first: index of the work's first batch, counted in the order in which batches began.
          result: of the call, and in rounds of the push that followed.
        """

    def stopped(self) -> bool:
        """Whether no further work is to be given out; work that is under way is finished."""


class RoundRun(Run, Protocol):
    """Training under a policy whose schedule is a `RoundSchedule`."""

    def push(self, worker: int, share: float, expected: int) -> Callable[[], Result]:
        """The call that pushes what the worker's last call has computed.

        Args:
          worker: index.
          share: of the worker in the weighted mean.
          expected: how many workers push in this round.
        """


class WorkLoop:
    """Runs the work of a source on the workers until the source is at its end.

    A worker gets its next work only after the hooks of its last work. So with one worker, what a
    hook changes holds for the very next batch, as in Keras.
    """

    def __init__(
        self,
        calls: WorkerCalls,
        source: WorkSource,
        run: Run,
        schedule: Schedule | None = None,
        first: int = 0,
    ):
        """Makes ready for `run`, with all workers idle.

        Args:
          calls: to the workers.
          source: of the work.
          run: what is to be done.
          schedule: who may start when. None lets everybody start at any time.
          first: index of the first batch.
        """
        self._calls = calls
        self._source = source
        self._run = run
        self._schedule = schedule or Clocks()
        self._begun = self._ended = first
        self._idle = collections.deque(range(calls.num_workers))

    def run(self) -> int:
        """Returns the index after the last batch, once the source has ended or the run stopped."""
        try:
            while True:
                waiting = self._start()
                if self._calls.pending:
                    self._complete(self._calls.next())
                elif waiting:
                    raise errors.ConfigError(
                        f"{type(self._schedule).__name__} allows no step to any of the workers "
                        f"{waiting}, and no worker is at work that it could wait for; its "
                        "allowance must be above 0 for one of them"
                    )
                else:
                    return self._ended
        except BaseException:
            # No result of this run may come back as the result of a later run.
            self._calls.drain()
            raise

    def _start(self) -> list[int]:
        """Gives idle workers work; returns the workers that have to wait for others."""
        # A worker that leaves may have been the one that other workers wait for.
        waiting = list(self._idle)
        while waiting != (waiting := self._start_some(waiting)):
            pass
        return waiting

    def _start_some(self, workers: list[int]) -> list[int]:
        """Gives each of these workers work; returns the workers that have to wait."""
        waiting = []
        for worker in workers:
            if self._run.stopped():
                self._schedule.leave(worker)
                continue
            self._schedule.join(worker)
            steps = self._schedule.allowance(worker)
            if not steps:
                waiting.append(worker)
                continue
            work = self._source.take(worker, steps)
            if work is None:
                # Nobody has to wait for a worker without data.
                self._schedule.leave(worker)
                continue
            self._idle.remove(worker)
            self._schedule.started(worker)
            if work.count:
                self._run.began(self._begun)
            self._calls.submit(worker, self._run.call(worker, work), tag=(self._begun, work))
            self._begun += work.count
        return waiting

    def _complete(self, completion: Completion) -> None:
        worker, result = completion.worker, completion.value
        first, work = completion.tag
        self._source.done(worker, work, result.taken)
        if self._schedule.finished(worker, result.steps, result.weight):
            self._hold(worker, first, result)
        else:
            self._settle(worker, first, result)

    def _hold(self, worker: int, first: int, result: Result) -> None:
        raise errors.ConfigError(
            f"{type(self._schedule).__name__} holds back what worker {worker} computed, but the "
            "policy is not in rounds; finished must return False, or the policy's in_rounds be True"
        )

    def _settle(self, worker: int, first: int, result: Result) -> None:
        self._idle.append(worker)
        self._ended += result.steps
        if result.steps:
            self._run.ended(self._ended - 1, first, result)


class RoundLoop(WorkLoop):
    """A work loop in rounds: workers hold back what they computed until their round is due."""

    _run: RoundRun
    _schedule: RoundSchedule

    def __init__(self, *args: Any, **kwargs: Any):
        """See `WorkLoop`; the schedule is a `RoundSchedule`."""
        super().__init__(*args, **kwargs)
        self._held: dict[int, tuple[int, Result]] = {}  # worker -> (its first batch, its result)

    def _start(self) -> list[int]:
        # In the order of workers, so that who gets which batch, and which step number, does not
        # depend on who was quicker in the last round: residuals and random numbers follow from it.
        self._idle = collections.deque(sorted(self._idle))
        waiting = super()._start()
        due = self._schedule.due()
        for worker, share in sorted(due.items()):
            self._calls.submit(worker, self._run.push(worker, share, len(due)))
        return waiting

    def _hold(self, worker: int, first: int, result: Result) -> None:
        self._held[worker] = first, result

    def _complete(self, completion: Completion) -> None:
        if completion.tag is not None:
            super()._complete(completion)
            return
        worker = completion.worker
        first, computed = self._held.pop(worker)
        self._schedule.pushed(worker)
        self._settle(worker, first, computed + completion.value)
