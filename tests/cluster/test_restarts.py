"""The budget of restarts."""

from tfps.cluster.restarts import HOUR, Budget


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
