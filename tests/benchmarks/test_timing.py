"""Which part of a turn the clocks of the benchmarks' programs time."""

import pytest

from benchmarks import fit_clock, timing
from benchmarks.wire import lines

ORDER = {"warmup": 2, "steps": 3}


@pytest.fixture
def taken(monkeypatch):
    """What was done: "step" for each step, and "mark" where the byte counters are read."""
    done = []
    monkeypatch.setattr(lines, "mark", lambda: done.append("mark"))
    return done


def test_steps_after_the_warmup_are_timed(taken):
    answer = timing.timed(lambda: taken.append("step"), ORDER)
    assert taken == ["step"] * 2 + ["mark"] + ["step"] * 3 + ["mark"]
    assert answer["steps"] == 3 and answer["seconds"] >= 0


def test_the_last_step_is_waited_for(taken):
    def step():
        taken.append("step")
        return len(taken)

    timing.timed(step, {"warmup": 0, "steps": 2}, wait=lambda last: taken.append(("waits", last)))
    assert taken == ["mark", "step", "step", ("waits", 3), "mark"]


def fit(taken, every=1):
    """A `fit` whose hooks are called after so many steps."""

    def run(steps_per_epoch, callbacks, verbose):
        assert verbose == 0
        for i in range(steps_per_epoch):
            taken.append("step")
            if (i + 1) % every == 0:
                for callback in callbacks:
                    callback.on_train_batch_end(i)

    return run


def test_a_part_of_fit_is_timed(taken):
    answer = fit_clock.timed(fit(taken), ORDER)
    assert taken == ["step"] * 2 + ["mark"] + ["step"] * 3 + ["mark"]
    assert answer["steps"] == 3 and answer["seconds"] >= 0


def test_as_many_steps_are_under_way_before_and_after(taken):
    answer = fit_clock.timed(fit(taken), ORDER, workers=2, around=1)
    assert taken == ["step"] * 6 + ["mark"] + ["step"] * 6 + ["mark"] + ["step"] * 2
    assert answer["steps"] == 6


def test_steps_that_come_several_at_a_time_are_counted_as_they_come(taken):
    answer = fit_clock.timed(fit(taken, every=4), {"warmup": 2, "steps": 6})
    assert taken == ["step"] * 4 + ["mark"] + ["step"] * 4 + ["mark"]
    assert answer["steps"] == 4
