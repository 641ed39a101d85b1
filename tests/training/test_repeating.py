"""What a worker keeps of a repeat that some servers ignore."""

from types import SimpleNamespace

import numpy as np

from tfps.training.given import Redo
from tfps.training.given_rounds import RoundWork
from tfps.training.repeating import Repeating
from tfps.worker import tally
from tfps.worker.own_values import Own
from tfps.worker.sync_step import SyncCarry, SyncStep


class Step:
    """A step of rounds whose push leaves other residuals in every bucket."""

    own = SimpleNamespace(shapes=[])
    with_residuals, rest = SyncStep.with_residuals, SyncStep.rest

    def __call__(self, handles, source, carry, own, count, number, rate):
        own.metrics.append("a batch of somebody else's")
        return np.zeros(2 + tally.SIZE), carry._replace(change="computed"), own

    def push(self, handles, carry, number, share, expected, rate, repeats):
        assert (carry.change, number, share, expected) == ("computed", 9, 0.5, 2)
        residuals = {i: (f"{r[0]} and new",) for i, r in carry.residuals.items()}
        return np.zeros(2 + tally.SIZE), carry._replace(residuals=residuals)


def test_in_a_round_residuals_of_servers_that_have_the_push_stay():
    buckets = [SimpleNamespace(ps=ps) for ps in (0, 1, 0)]
    each = [Own(**{key: ["its own"] for key in Own._fields})]
    carry = SyncCarry({i: (f"old {i}",) for i in range(3)}, {}, None)
    session = SimpleNamespace(
        state=SimpleNamespace(carries=[carry], own=SimpleNamespace(each=each)),
        served=SimpleNamespace(store=SimpleNamespace(plan=SimpleNamespace(buckets=buckets))),
    )
    redo = Redo(None, 0, 1, 9, frozenset({0}), counts=False, open=False)
    held = RoundWork(None, number=7, push=9, share=0.5, expected=2)
    repeating = Repeating(session, None, None, None, Step())
    call = repeating.round(0, redo, SimpleNamespace(source=None, count=1), held, None, None, 0.1)
    call()
    kept = session.state.carries[0]
    assert kept.residuals == {0: ("old 0",), 1: ("old 1 and new",), 2: ("old 2",)}
    assert each[0].metrics == ["its own"]


def test_an_update_is_counted_whose_report_was_lost():
    """With local steps, what the outer optimizer has done is known by reports alone."""
    buckets = [SimpleNamespace(ps=ps) for ps in (0, 1)]
    carry = SimpleNamespace(residuals={}, _replace=lambda residuals: carry)

    def updates(local_steps, has):
        def step(handles, source, carry, own, count, number, rate, repeats):
            return np.zeros(2 + tally.SIZE), carry, own

        step.own = Step.own
        each = [Own(**{key: [] for key in Own._fields})]
        session = SimpleNamespace(
            state=SimpleNamespace(carries=[carry], own=SimpleNamespace(each=each)),
            served=SimpleNamespace(store=SimpleNamespace(plan=SimpleNamespace(buckets=buckets))),
            steps=SimpleNamespace(repeating=lambda *_: step),
        )
        side = SimpleNamespace(pusher=SimpleNamespace(written_to=lambda: [0, 1]))
        policy = SimpleNamespace(local_steps=local_steps)
        redo = Redo(None, 0, 1, 9, frozenset(has), counts=True, open=True)
        repeating = Repeating(session, side, policy, None, None)
        work = SimpleNamespace(source=None, count=1)
        return repeating.unit(0, redo, work, None, None, 0.1)().tally.updates

    assert updates(3, {0, 1}) == 1
    assert updates(3, {0}) == 0  # The ps that had lacked it says what it has done.
    assert updates(0, {0, 1}) == 0  # What the servers have applied is asked of them.
