"""The kernel: time, shared capacities and queues."""

import math

import pytest

from tfps.planning.kernel import Clock, Serial, Shared, all_of, fired


def ends(clock, events):
    """When each of the events happens."""
    times = {}
    for i, event in enumerate(events):
        event.then(lambda i=i: times.setdefault(i, clock.now))
    clock.run(lambda: False)
    return [times[i] for i in range(len(events))]


def test_jobs_share_a_capacity():
    clock = Clock()
    link = Shared(clock, 10.0)
    assert ends(clock, [link.work(10), link.work(30)]) == pytest.approx([2.0, 4.0])
    assert link.done == 40


def test_a_job_that_comes_later_slows_the_first():
    clock = Clock()
    link, found = Shared(clock, 10.0), []
    link.work(20).then(lambda: found.append(clock.now))
    clock.after(1.0, lambda: link.work(5).then(lambda: found.append(clock.now)))
    clock.run(lambda: False)
    assert found == pytest.approx([2.0, 2.5])


def test_a_job_has_one_core_at_most_and_weights_count():
    clock = Clock()
    cores = Shared(clock, 2.0, 1.0)
    assert ends(clock, [cores.work(3.0)]) == pytest.approx([3.0])
    clock = Clock()
    cores = Shared(clock, 2.0, 1.0)
    # Two threads and one share two cores: each thread has two thirds.
    assert ends(clock, [cores.work(4.0, 2), cores.work(4.0)]) == pytest.approx([3.0, 5.0])


def test_infinite_capacity_takes_no_time():
    assert Shared(Clock(), math.inf).work(1e9).fired


def test_long_times_come_to_an_end():
    clock = Clock()
    clock.now = 1e7
    link, left = Shared(clock, 1e9), 50

    def process():
        nonlocal left
        while left:
            left -= 1
            yield all_of([link.work(3.7e5), link.work(1.1e5)])

    end = clock.start(process())
    assert clock.run(lambda: end.fired)
    assert clock.now == pytest.approx(1e7 + 50 * 4.8e-4, abs=1e-4)


def test_a_serial_server_keeps_the_order():
    clock = Clock()
    server = Serial(clock)
    jobs = [server.do(lambda s=s: clock.delay(s)) for s in (2.0, 1.0, 0.0)]
    assert server.longest == 2
    assert ends(clock, jobs) == [2.0, 3.0, 3.0]
    assert server.busy == 3.0


def test_events_of_all():
    clock = Clock()
    assert all_of([]).fired and all_of([fired(), fired()]).fired
    assert ends(clock, [all_of([clock.delay(1), clock.delay(3), fired()])]) == [3.0]
