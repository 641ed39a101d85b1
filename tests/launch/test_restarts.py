"""Budgets and delays of restarts, with a clock of the test's own."""

from hypothesis import given, strategies as st

from launch import restarts

GAPS = st.lists(st.floats(0, 4000), max_size=60)


@given(limit=st.integers(0, 8), gaps=GAPS, names=st.data())
def test_no_hour_has_more_than_its_budget(limit, gaps, names):
    budget = restarts.Budget(limit)
    now, granted = 0.0, []
    for gap in gaps:
        now += gap
        task = names.draw(st.sampled_from(["worker 0", "worker 1"]))
        within = [t for t in granted if t > now - restarts.HOUR]
        assert budget.used(now) == len(within)
        delay = budget.spend(task, now)
        assert (delay is None) == (len(within) >= limit)
        if delay is not None:
            granted.append(now)


@given(failures=st.integers(0, 10_000), uniform=st.floats(0, 1))
def test_delays_have_bounds(failures, uniform):
    backoff = restarts.Backoff(first=2.0, most=50.0, jitter=0.5)
    delay = backoff.delay(failures, lambda: uniform)
    longest = min(50.0, 2.0 * 2.0 ** min(failures, 10))
    assert longest / 2 <= delay <= longest


def test_delays_grow_with_the_failures_of_the_same_task():
    budget = restarts.Budget(10, restarts.Backoff(1.0, 60.0, jitter=0.0))
    assert [budget.spend("worker 0", 0.0) for _ in range(4)] == [1.0, 2.0, 4.0, 8.0]
    assert budget.spend("worker 1", 0.0) == 1.0
    # It was to start at 8 s, and has lived for 19 s, 20 s, and 1 s.
    assert budget.spend("worker 0", 27.0) == 16.0
    assert budget.spend("worker 0", 63.0) == 1.0
    assert budget.spend("worker 0", 65.0) == 2.0
