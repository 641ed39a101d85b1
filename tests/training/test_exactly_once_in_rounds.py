"""As `test_exactly_once`, in rounds: workers compute, and push when their round is due."""

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.training.test_exactly_once import (
    PS,
    ExactlyOnce,
    Result,
    Unit,
)
from tfps.training import work_loop
from tfps.training.given_rounds import GivenRounds
from tfps.training.schedule import Rounds
from tfps.training.work_loop import RoundLoop


class InRounds(ExactlyOnce):
    """The chief, and `work_loop.RoundRun` for its loop."""

    @initialize(overlap=st.just(0), exchange=st.just(False), group=st.just(1))
    def begin(self, overlap, exchange, group):
        self._begin(overlap, exchange, group)

    def _begin_loop(self):
        self.given = GivenRounds()
        self.loop = RoundLoop(self.calls, self.feed, self, Rounds())
        self.due = {}  # number of a push -> number of its round

    def call(self, worker, work):
        number, self.number = self.number, self.number + 1
        self.given.give(worker, number, work)
        life = self.lives[worker]

        def call():
            life.plan, life.after, life.trained = [], lambda: None, list(work.source)

        return call

    def push(self, worker, share, expected):
        number, self.number = self.number, self.number + 1
        work = self.given.due(worker, number, share, expected).work
        life = self.lives[worker]
        self.due[number] = self.loop._schedule.number

        def call():
            life.plan, life.after = [Unit(number, list(work.lease))], lambda: None

        return call

    def completed(self, worker, work, result):
        pass

    def dropped(self, worker):
        raise AssertionError(f"a round without backups has not waited for worker {worker}")

    def _result(self, life, tag, known):
        if isinstance(tag, work_loop._Again):
            return Result(0, tag.redo.count)
        if isinstance(tag, work_loop._Pushes):
            return Result(0, 0)
        if isinstance(tag, tuple):
            return Result(1, 1, metrics=life.trained)
        return None

    @precondition(lambda self: self._is_over() and not self.loop._held)
    @rule(lost=st.booleans(), reached=st.sets(st.integers(0, PS - 1)), which=st.integers(0, 20))
    def end(self, lost, reached, which):
        """A cut, and more batches; nothing is pending between rounds."""
        self._take_cut()
        self.feed.ready += range(self.count, self.count + 6)
        self.count += 6
        self._go_on()

    @invariant()
    def a_round_is_through_before_the_next_one_begins(self):
        for server in getattr(self, "servers", []):
            for batch, units in server.applied.items():
                for number in units:
                    behind = self.due.get(number)
                    if behind is not None and behind < self.loop._schedule.number:
                        others = [other.applied[batch] for other in self.servers]
                        assert all(others), f"round {behind} has ended without batch {batch}"


TestInRounds = InRounds.TestCase


def given_out_to_the_lost(monkeypatch):
    monkeypatch.setattr(RoundLoop, "_give_out", RoundLoop._start)


def leaving_counts_as_a_push(monkeypatch):
    leave = Rounds.leave

    def left(self, worker):
        leave(self, worker)
        if worker in self._pushing:
            self.pushed(worker)

    monkeypatch.setattr(Rounds, "leave", left)


def counted_twice(monkeypatch):
    monkeypatch.setattr(Result, "counted", lambda self: self)


@pytest.mark.long
@pytest.mark.parametrize(
    "mutation",
    [given_out_to_the_lost, leaving_counts_as_a_push, counted_twice],
    ids=lambda f: f.__name__,
)
def test_the_machine_sees_a_mutation(monkeypatch, mutation):
    mutation(monkeypatch)
    machine = type("Mutated", (InRounds,), {"servers": []})
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=4000,  # It ends with the first that shows it.
                deadline=None,
                phases=[Phase.generate],
                database=None,
                derandomize=True,
            ),
        )
