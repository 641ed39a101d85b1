"""The budget of restarts."""

import io
import sys
import time

from tfps.cluster.restarts import HOUR, Budget, Kept


def test_a_budget_is_that_of_an_hour():
    now = 0.0
    budget = Budget(3, lambda: now)
    assert [budget.spend(name) for name in ("a", "b", "a")] == [0.1, 0.1, 0.2]
    assert budget.spend("b") is None
    now = HOUR - 1
    assert budget.spend("a") is None
    now = HOUR
    assert budget.spend("a") == 0.1


def test_a_server_that_has_lived_for_long_is_started_again_at_once():
    now = 0.0
    budget = Budget(100, lambda: now)
    assert [budget.spend("a") for _ in range(3)] == [0.1, 0.2, 0.4]
    now = 15.0
    assert budget.spend("a") == 0.8
    now = 36.0
    assert budget.spend("a") == 0.1


def test_delays_have_a_limit():
    budget = Budget(100, lambda: 0.0)
    assert [budget.spend("a") for _ in range(100)][-1] == 30.0


def test_a_server_is_started_again_where_nobody_can_be_told(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError("nobody reads")

    class Killed:
        def wait(self):
            return -9

    started = []

    def start():
        started.append(Killed())
        return started[-1]

    monkeypatch.setattr(sys, "stderr", Closed())
    kept = Kept("worker 0", start, Budget(2, lambda: 0.0))
    for _ in range(1000):
        if len(started) == 3:
            break
        time.sleep(0.01)
    assert len(started) == 3
    kept.release()
