"""The loop that hands out work, with workers that take the time that they are told, in no time."""

import heapq
import random
from collections import Counter

import pytest

from tfps.cluster.events import Completion
from tfps.training.feeds import Work
from tfps.training.schedule import Clocks, Rounds
from tfps.training.work_loop import RoundLoop, WorkLoop
from tfps.worker import tally


class Simulated:
    """A dispatcher whose workers take the time that it is told, in no time."""

    def __init__(self, workers, seconds):
        self.num_workers, self._seconds = workers, seconds
        self._calls, self._now, self._order = [], 0.0, 0
        self.living, self.events, self.enough = set(range(workers)), [], True
        self.lives = [0] * workers

    @property
    def pending(self):
        return len(self._calls)

    def submit(self, worker, function, tag=None):
        end = self._now + self._seconds(worker)
        self._order += 1
        heapq.heappush(self._calls, (end, self._order, worker, function, tag))

    def next(self):
        self._now, _, worker, function, tag = heapq.heappop(self._calls)
        return Completion(worker, tag, function())

    def drain(self):
        self._calls.clear()


class Batches:
    """A feed: so many batches for all together, or a list with those of each worker."""

    def __init__(self, batches, group=1):
        self.lives = {}
        self._group = group
        self._shared = None if isinstance(batches, list) else batches
        self._own = batches if isinstance(batches, list) else None
        self._ended = set()

    def take(self, worker, most):
        count = min(self._group, most)
        if self._own is None:
            count = min(count, self._shared)
            self._shared -= count
        elif worker in self._ended:
            return None
        return Work(None, int(count)) if count else None

    def done(self, worker, work, steps):
        if self._own is not None:
            self._own[worker] -= steps
            if steps < work.count:
                self._ended.add(worker)  # Which only asking for more finds out.

    def used(self, worker, work):
        return work.count if self._own is None else min(work.count, self._own[worker])


def result(steps):
    examples = float(steps)
    return tally.Report(steps, tally.Tally(examples=examples, good=examples), [], steps)


def simulate(workers, seconds, feed, schedule):
    """A run of `WorkLoop`; returns (index after the last batch, log of what happened in order)."""
    log = []

    class Run:
        def call(self, worker, work):
            log.append(("start", worker, work.count))

            def call():
                steps = feed.used(worker, work)
                log.append(("end", worker, steps))
                return result(steps)

            return call

        def push(self, worker, share, expected):
            log.append(("push", worker, expected))
            return lambda: result(0)

        def began(self, first):
            pass

        def completed(self, worker, work, result):
            pass

        def dropped(self, worker):
            pass

        def ended(self, last, first, result):
            pass

        def stopped(self):
            return False

    loop = RoundLoop if hasattr(schedule, "due") else WorkLoop
    return loop(Simulated(workers, seconds), feed, Run(), schedule).run(), log


def delays(slow):
    """Random seconds of a step; the last worker is slower by a factor."""
    rng = random.Random(0)
    return lambda worker: rng.expovariate(1.0) * (slow if worker == 3 else 1)


@pytest.mark.parametrize("slow", [1, 10])
@pytest.mark.parametrize("bound, group", [(0, 1), (2, 1), (4, 1), (4, 3)])
def test_5000_steps_never_show_a_larger_gap(bound, group, slow):
    last, log = simulate(4, delays(slow), Batches(5000, group), Clocks(bound))
    assert last == 5000
    done = Counter(dict.fromkeys(range(4), 0))
    gaps = []
    for event, worker, steps in log:
        if event == "end":
            done[worker] += steps
        else:
            gaps.append(done[worker] + steps - 1 - min(done.values()))
    # The limit is reached, and so it is what holds workers back.
    assert max(gaps) == bound
    assert max(done.values()) - min(done.values()) <= bound + 1  # Nobody starves.


def test_asynchronous_workers_wait_for_nobody():
    _, log = simulate(4, delays(10), Batches(5000), Clocks())
    done = Counter(worker for event, worker, _ in log if event == "end")
    assert min(done[w] for w in range(3)) > 5 * done[3] > 0


@pytest.mark.parametrize("backups", [0, 1])
def test_5000_steps_in_rounds(backups):
    last, log = simulate(4, delays(10), Batches(5000), Rounds(backups))
    assert last == 5000
    pushes = [expected for event, _, expected in log if event == "push"]
    assert pushes.count(4 - backups) > 0.9 * len(pushes)
    if not backups:
        assert len(pushes) == 5000  # Nothing is dropped.
    done = Counter(worker for event, worker, _ in log if event == "end")
    assert min(done.values()) > (5000 // 4 - 1 if not backups else 100)


@pytest.mark.parametrize(
    "schedule",
    [Clocks, lambda: Clocks(0), lambda: Clocks(2), Rounds, lambda: Rounds(1), lambda: Rounds(0, 4)],
    ids=["async", "bounded0", "bounded2", "sync", "backup", "local"],
)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("batches", [[9, 3, 0, 5], [0, 0, 0, 7], [1, 2, 3, 4]])
def test_every_batch_of_uneven_datasets_is_used(schedule, group, batches):
    for slow in (0.1, 1, 10):
        last, log = simulate(4, delays(slow), Batches(list(batches), group), schedule())
        assert last == sum(batches)
        used = Counter()
        for event, worker, steps in log:
            used[worker] += steps * (event == "end")
        assert [used[w] for w in range(4)] == batches
