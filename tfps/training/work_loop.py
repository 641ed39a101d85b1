"""Handing out work: which worker runs what next, and what happens when it is done, or lost."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from tfps import errors, exit_codes
from tfps.cluster.calls import WorkerCalls
from tfps.cluster.events import Completion, Leaves, Lost, Returned
from tfps.training.feeds import WorkSource
from tfps.training.given import Redo
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

    def counted(self) -> Any:
        """What is left of the result when all but its batches has been counted."""


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

    def completed(self, worker: int, work: Any, result: Any) -> None:
        """A call has ended; called before `ended`, and whether or not the call had batches."""

    def abandoned(self) -> None:
        """A ps is lost: what the workers are doing is of no use any more."""

    def lost(self, worker: int, redo: Redo | None) -> list[Redo]:
        """A worker is lost. What was not trained on at all is given back to the source.

        Args:
          worker: index.
          redo: what the worker was to do again for another one; None if it was doing its own work.

        Returns:
          What another worker is to do again. A redo that the worker was given comes back first,
          with what is known of it now.
        """

    def redo(self, worker: int, redo: Redo) -> tuple[Any, Callable[[], Result]]:
        """(the work, the call) by which a worker does again what another one has lost."""

    def redo_ended(self, worker: int, work: Any, taken: int) -> None:
        """The work of a redo is settled: it is done, or its worker was lost, too."""

    def counts(self, result: Any) -> None:
        """What something came to whose batches end later, or have ended, as far as hooks know."""

    def leaving(self, worker: int) -> Callable[[], Any] | None:
        """The call by which a worker hands back what it holds, for it was told to end.

        It has done its work. None if nothing is handed back; the worker is then lost when it ends.
        """

    def left(self, worker: int, value: Any) -> None:
        """The call of `leaving` has ended with this value; the worker gets nothing any more."""

    def returned(self, worker: int) -> Callable[[], Any]:
        """The call by which a worker begins that has returned."""

    def begins(self, worker: int, value: Any) -> None:
        """The call of `returned` has ended with this value; the worker gets work from now on."""


class RoundRun(Run, Protocol):
    """Training under a policy whose schedule is a `RoundSchedule`."""

    def push(self, worker: int, share: float, expected: int) -> Callable[[], Result]:
        """The call that pushes what the worker's last call has computed.

        Args:
          worker: index.
          share: of the worker in the weighted mean.
          expected: how many workers push in this round.
        """

    def dropped(self, worker: int) -> None:
        """What a worker has computed came too late for its round, and is not pushed."""


@dataclasses.dataclass
class _LostCall:
    """A call that was lost with its worker, of which something is done again.

    Attributes:
      worker: index of the worker that was lost.
      first: index of the call's first batch.
      left: how many redos are left.
      result: of what is done, and counted.
    """

    worker: int
    first: int
    left: int = 0
    result: Any = None


@dataclasses.dataclass(frozen=True)
class _Again:
    """What is to be done again, and for which lost call; None if its batches have ended before."""

    redo: Redo
    call: _LostCall | None
    work: Any = None


class _Begin:
    """The tag of the call by which a returned worker begins."""


class _HandsBack:
    """The tag of the call by which a worker hands back what it holds."""


class WorkLoop:
    """Runs the work of a source on the workers until the source is at its end.

    A worker gets its next work only after the hooks of its last work. So with one worker, what a
    hook changes holds for the very next batch, as in Keras.

    When a worker is lost, what it was doing goes to others, before any new work; nobody else waits.
    """

    def __init__(
        self,
        calls: WorkerCalls,
        source: WorkSource,
        run: Run,
        schedule: Schedule | None = None,
        first: int = 0,
    ):
        """Makes ready for `run`, with all living workers idle.

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
        self._idle = collections.deque(sorted(calls.living))
        self._redo: collections.deque[_Again] = collections.deque()
        self._meet()
        self._announced = 0  # batches whose hooks have been called, and that are dealt out again
        self._leaving: set[int] = set()  # workers that leave when they are idle
        self._is_dry = False  # whether the source had nothing for whoever asked last

    def _meet(self) -> None:
        """Tells the source which workers were lost, or have returned, since its last loop."""
        known, calls = self._source.lives, self._calls
        for worker in range(calls.num_workers):
            life = calls.lives[worker] if worker in calls.living else None
            if worker in known and known[worker] != life and life is not None:
                self._source.back(worker)
            elif life is None and known.get(worker, 0) is not None:
                self._source.left(worker)
            known[worker] = life

    def _source_loses(self, worker: int) -> None:
        """Tells the source that a worker is gone; others may find work there now."""
        self._source.left(worker)
        self._source.lives[worker] = None
        self._is_dry = False

    def run(self) -> int:
        """Returns the index after the last batch, once the source has ended or the run stopped.

        It may be called again after workers were lost in what followed.
        """
        try:
            while True:
                exit_codes.end_if_told()
                waiting = self._give_out()
                if self._calls.pending or self._calls.events or self._lacks_workers():
                    self._take_in(self._calls.next())
                elif waiting:
                    raise errors.ConfigError(
                        f"{type(self._schedule).__name__} allows no step to any of the workers "
                        f"{waiting}, and no worker is at work that it could wait for; its "
                        "allowance must be above 0 for one of them"
                    )
                else:
                    return self._ended
        except errors.TaskLost:
            # The calls under way wait for the server that is lost.
            self._run.abandoned()
            self._calls.drain()
            raise
        except BaseException:
            # No result of this run may come back as the result of a later run.
            self._calls.drain()
            raise

    def _lacks_workers(self) -> bool:
        """Whether there is something to do, and nobody to do it."""
        if self._calls.enough and self._idle:
            return False
        return bool(self._redo) or not (self._is_dry or self._run.stopped())

    def _take_in(self, event: Completion | Lost | Returned | Leaves) -> None:
        match event:
            case Leaves(worker):
                self._leaving.add(worker)
            case Completion(worker, _HandsBack(), value):
                self._let_go(worker, value)
            case Lost():
                self._lose(event)
            case Returned(worker):
                self._source.back(worker)
                self._source.lives[worker] = self._calls.lives[worker]
                self._calls.submit(worker, self._run.returned(worker), tag=_Begin())
            case Completion(worker, _Begin(), value):
                self._run.begins(worker, value)
                self._idle.append(worker)
            case Completion(worker, _Again() as again, value):
                self._complete_again(worker, again, value)
            case _:
                self._complete(event)

    def _give_out(self) -> list[int]:
        """Gives idle workers work; returns the workers that have to wait for others."""
        # An idle worker may be lost, and its loss not have been taken in.
        return [] if self._calls.events else self._start()

    def _start(self) -> list[int]:
        """See `_give_out`; every idle worker lives."""
        self._take_back()
        if not self._calls.enough:
            return []
        self._start_again()
        # A worker that leaves may have been the one that other workers wait for.
        waiting = list(self._idle)
        while waiting != (waiting := self._start_some(waiting)):
            pass
        return waiting

    def _take_back(self) -> None:
        """Lets idle workers hand back what they hold that were told to end."""
        for worker in self._leaving & set(self._idle):
            self._leaving.discard(worker)
            if (call := self._run.leaving(worker)) is not None:
                self._idle.remove(worker)
                self._calls.submit(worker, call, tag=_HandsBack())

    def _let_go(self, worker: int, value: Any) -> None:
        self._calls.let_go(worker)
        self._run.left(worker, value)
        self._source_loses(worker)
        self._schedule.leave(worker)

    def _start_again(self) -> None:
        """Gives out what is to be done again: before new work, and whatever the schedule."""
        while self._redo and self._idle:
            again, worker = self._redo.popleft(), self._idle.popleft()
            work, call = self._run.redo(worker, again.redo)
            self._calls.submit(worker, call, tag=dataclasses.replace(again, work=work))

    def _start_some(self, workers: list[int]) -> list[int]:
        """Gives each of these workers work; returns the workers that have to wait."""
        waiting = []
        for worker in workers:
            if worker not in self._idle:
                continue
            if self._run.stopped():
                self._schedule.leave(worker)
                continue
            self._schedule.join(worker)
            steps = self._schedule.allowance(worker)
            if not steps:
                waiting.append(worker)
                continue
            work = self._source.take(worker, steps)
            self._is_dry = work is None
            if work is None:
                # Nobody has to wait for a worker without data.
                self._schedule.leave(worker)
                continue
            self._idle.remove(worker)
            self._schedule.started(worker)
            self._announce(work.count)
            self._calls.submit(worker, self._run.call(worker, work), tag=(self._begun, work))
            self._begun += work.count
        return waiting

    def _announce(self, count: int) -> None:
        """Has the hook called that goes before a call, unless it was called for these batches."""
        again = min(count, self._announced)
        self._announced -= again
        self._begun -= again
        if count > again:
            self._run.began(self._begun)

    def _complete(self, completion: Completion) -> None:
        worker, result = completion.worker, completion.value
        first, work = completion.tag
        self._source.done(worker, work, result.taken)
        self._run.completed(worker, work, result)
        if self._schedule.finished(worker, result.steps, result.weight):
            self._hold(worker, first, work, result)
        else:
            self._settle(worker, first, result)

    def _hold(self, worker: int, first: int, work: Any, result: Result) -> None:
        raise errors.ConfigError(
            f"{type(self._schedule).__name__} holds back what worker {worker} computed, but the "
            "policy is not in rounds; finished must return False, or the policy's in_rounds be True"
        )

    def _settle(self, worker: int, first: int, result: Result) -> None:
        self._idle.append(worker)
        self._end(first, result)

    def _end(self, first: int, result: Result) -> None:
        self._ended += result.steps
        if result.steps:
            self._run.ended(self._ended - 1, first, result)

    # What is lost with a worker.

    def _lose(self, lost: Lost) -> None:
        worker, tag = lost.worker, lost.tag
        self._leaving.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        again = tag if isinstance(tag, _Again) else None
        redos = self._run.lost(worker, None if again is None else again.redo)
        self._source_loses(worker)
        if again is not None:
            self._run.redo_ended(worker, again.work, again.redo.count)
            # Before what others have lost since, as it was.
            self._redo.appendleft(_Again(redos.pop(0), again.call))
        call = None
        if isinstance(tag, tuple):
            call = _LostCall(worker, tag[0])
            open_ = sum(redo.count for redo in redos if redo.open)
            self._announced += tag[1].count - open_
        for redo in redos:
            if redo.open and call is not None:
                call.left += 1
            self._redo.append(_Again(redo, call if redo.open else None))
        if call is None or not call.left:
            # Otherwise the steps that are done again hold the clock of the worker open.
            self._schedule.leave(worker)

    def _complete_again(self, worker: int, again: _Again, result: Result) -> None:
        self._run.redo_ended(worker, again.work, result.taken)
        self._idle.append(worker)
        self._run.counts(result)
        if (call := again.call) is None:
            return
        call.left -= 1
        counted = result.counted()
        call.result = counted if call.result is None else call.result + counted
        if not call.left:
            self._end(call.first, call.result)
            if call.worker not in self._calls.living:
                self._schedule.leave(call.worker)


class RoundLoop(WorkLoop):
    """A work loop in rounds: workers hold back what they computed until their round is due."""

    _run: RoundRun
    _schedule: RoundSchedule

    def __init__(self, *args: Any, **kwargs: Any):
        """See `WorkLoop`; the schedule is a `RoundSchedule`."""
        super().__init__(*args, **kwargs)
        self._held: dict[int, _Held] = {}

    def _start(self) -> list[int]:
        # In the order of workers, so that who gets which batch, and which step number, does not
        # depend on who was quicker in the last round: residuals and random numbers follow from it.
        self._idle = collections.deque(sorted(self._idle))
        waiting = super()._start()
        due = self._schedule.due()
        for worker, share in sorted(due.items()):
            self._held[worker].pushes = True
            call = self._run.push(worker, share, len(due))
            self._calls.submit(worker, call, tag=_Pushes())
        return waiting

    def _hold(self, worker: int, first: int, work: Any, result: Result) -> None:
        self._held[worker] = _Held(first, work, result)

    def _complete(self, completion: Completion) -> None:
        if not isinstance(completion.tag, _Pushes):
            super()._complete(completion)
            if completion.worker not in self._held and completion.value.steps:
                self._run.dropped(completion.worker)
            return
        worker = completion.worker
        held = self._held.pop(worker)
        self._schedule.pushed(worker)
        self._settle(worker, held.first, held.result + completion.value)

    def _lose(self, lost: Lost) -> None:
        worker = lost.worker
        held = self._held.pop(worker, None)
        if held is None:
            super()._lose(lost)
            return
        self._leaving.discard(worker)
        if held.pushes:
            self._run.counts(held.result)
            call = _LostCall(worker, held.first, 1, held.result.counted())
            redos = self._run.lost(worker, None)
            self._redo.extend(_Again(redo, call) for redo in redos)
            if not redos:
                self._pushed_by_others(call)
        else:
            # It leaves the round, and its batch is dealt out in a later one.
            self._run.lost(worker, None)
            self._source.give_back(worker, held.work, 0)
            self._announced += held.work.count
            self._schedule.leave(worker)
        self._source_loses(worker)

    def _complete_again(self, worker: int, again: _Again, result: Result) -> None:
        self._run.redo_ended(worker, again.work, result.taken)
        self._idle.append(worker)
        self._run.counts(result)
        assert again.call is not None
        self._pushed_by_others(again.call)

    def _pushed_by_others(self, call: _LostCall) -> None:
        """What a lost worker had computed for its round is on every ps."""
        self._schedule.pushed(call.worker)
        if call.worker not in self._calls.living:
            self._schedule.leave(call.worker)
        self._end(call.first, call.result)


@dataclasses.dataclass
class _Held:
    """What a worker has computed and holds back.

    Attributes:
      first: index of the first batch.
      work: that was done.
      result: of the call.
      pushes: whether the round is due.
    """

    first: int
    work: Any
    result: Any
    pushes: bool = False


class _Pushes:
    """The tag of a call that pushes what is held back."""
