"""Who may step when: the promises of the bookkeeping, under any order of events."""

import heapq
import math
import random
from collections import Counter

import keras
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tfps
from tfps.cluster.calls import Completion
from tfps.training import consistency
from tfps.training.feeds import Work
from tfps.training.schedule import Clocks, Rounds
from tfps.training.work_loop import RoundLoop, WorkLoop
from tfps.worker import tally

WORKERS = st.integers(0, 3)
# One of those that a rule is about.
PICK = st.integers(0, 3).map(lambda i: lambda some: sorted(some)[i % len(some)])


class ClocksMachine(RuleBasedStateMachine):
    """Workers come, step and go as they like, but start only what they are allowed."""

    @initialize(bound=st.sampled_from([0, 1, 3, math.inf]))
    def begin(self, bound):
        self.clocks, self.bound = Clocks(bound), bound
        self.next: dict[int, int] = {}  # present worker -> its first unfinished step
        self.calls: dict[int, int] = {}  # worker, even one that left -> steps under way

    @rule(worker=WORKERS)
    def join(self, worker):
        self.clocks.join(worker)
        self.next.setdefault(worker, min(self.next.values(), default=0))

    @precondition(lambda self: self.next)
    @rule(pick=PICK)
    def leave(self, pick):
        worker = pick(self.next)
        self.clocks.leave(worker)
        self.next.pop(worker)

    @precondition(lambda self: self.next.keys() - self.calls.keys())
    @rule(pick=PICK, most=st.integers(1, 5))
    def start(self, pick, most):
        worker = pick(self.next.keys() - self.calls.keys())
        if steps := min(most, self.clocks.allowance(worker)):
            self.clocks.started(worker)
            self.calls[worker] = steps

    @precondition(lambda self: self.calls)
    @rule(pick=PICK, unused=st.sampled_from([0, 0, 1, 5]))
    def finish(self, pick, unused):
        worker = pick(self.calls)
        steps = max(0, self.calls.pop(worker) - unused)
        assert not self.clocks.finished(worker, steps, 1.0)
        assert not self.clocks.finished(-1, 0, 0.0)  # Nothing is held back.
        if worker in self.next:
            self.next[worker] += steps

    @invariant()
    def nobody_is_too_far_ahead(self):
        for worker, first in self.next.items():
            last = first + self.calls.get(worker, 1) - 1
            if worker in self.calls:
                assert last <= min(self.next.values()) + self.bound

    @invariant()
    def the_slowest_may_always_start(self):
        for worker, first in self.next.items():
            if first == min(self.next.values()):
                assert self.clocks.allowance(worker) >= 1


class RoundsMachine(RuleBasedStateMachine):
    """As above, in rounds; whatever is due is pushed at once, as `WorkLoop` does."""

    @initialize(backups=st.integers(0, 2), steps=st.sampled_from([1, 4]))
    def begin(self, backups, steps):
        self.rounds, self.backups, self.steps = Rounds(backups, steps), backups, steps
        self.round = 0
        self.members: set[int] = set()
        self.most, self.shrunk = 0, False
        self.computing: dict[int, tuple[int, bool]] = {}  # worker -> (its round, has it left)
        self.held: dict[int, float] = {}
        self.pushing: set[int] = set()
        self.orphans: set[int] = set()  # left in the middle of a push

    def poll(self):
        shares = self.rounds.due()
        if not shares:
            return
        assert not self.pushing, "a round began to push before the last one was through"
        assert shares.keys() <= self.held.keys()
        assert math.isclose(sum(shares.values()), 1)
        total = sum(self.held[w] for w in shares)
        for worker, share in shares.items():
            expected = self.held[worker] / total if total else 1 / len(shares)
            assert math.isclose(share, expected)
        if self.shrunk:
            assert len(shares) <= max(1, self.most - self.backups)
        else:
            assert len(shares) == max(1, len(self.members) - self.backups)
        self.pushing, self.held = set(shares), {}

    @property
    def busy(self):
        return {*self.computing, *self.orphans, *self.pushing}

    @rule(worker=WORKERS)
    def join(self, worker):
        if worker in self.busy:
            return
        self.rounds.join(worker)
        self.members.add(worker)
        self.most = max(self.most, len(self.members))
        self.poll()

    @precondition(lambda self: self.members)
    @rule(pick=PICK)
    def leave(self, pick):
        worker = pick(self.members)
        self.rounds.leave(worker)
        self.shrunk = True
        self.members.discard(worker)
        self.held.pop(worker, None)
        if worker in self.computing:
            self.computing[worker] = (self.computing[worker][0], True)
        if worker in self.pushing:
            self.orphans.add(worker)
            self.pushed(worker)
        self.poll()

    @precondition(lambda self: self.members - self.busy - self.held.keys())
    @rule(pick=PICK)
    def start(self, pick):
        worker = pick(self.members - self.busy - self.held.keys())
        allowed = self.rounds.allowance(worker)
        assert allowed == (0 if self.pushing else self.steps)
        if allowed:
            self.rounds.started(worker)
            self.computing[worker] = (self.round, False)

    @precondition(lambda self: self.computing)
    @rule(pick=PICK, weight=st.sampled_from([1.0, 3.0, 0.0]), steps=st.sampled_from([1, 4, 0]))
    def finish(self, pick, weight, steps):
        worker = pick(self.computing)
        began, left = self.computing.pop(worker)
        in_time = began == self.round and not self.pushing and not left and steps > 0
        assert self.rounds.finished(worker, steps, weight) == in_time
        if in_time:
            self.held[worker] = weight
        self.poll()

    @precondition(lambda self: self.pushing or self.orphans)
    @rule(pick=PICK)
    def push(self, pick):
        worker = pick(self.pushing | self.orphans)
        self.rounds.pushed(worker)
        if worker in self.pushing:
            self.pushed(worker)
        self.orphans.discard(worker)
        self.poll()

    def pushed(self, worker):
        self.pushing.discard(worker)
        if not self.pushing:
            self.round += 1

    @invariant()
    def no_deadlock(self):
        """Where members are there and nothing of theirs is under way, one may start."""
        if self.members and not self.busy & self.members:
            assert any(self.rounds.allowance(w) for w in self.members)

    @invariant()
    def whoever_is_in_neither_round_nor_push_may_start(self):
        """So whatever others do, a member is only ever held up by a push under way."""
        for worker in self.members - self.busy - self.held.keys():
            assert self.pushing or self.rounds.allowance(worker)


TestClocks = ClocksMachine.TestCase
TestRounds = RoundsMachine.TestCase


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


PARSED = {
    "async": consistency.Async(),
    "async:staleness_scaling=true": consistency.Async(True),
    "bounded:2": consistency.BoundedStaleness(2),
    "bounded:2,true": consistency.BoundedStaleness(2, True),
    "sync": consistency.Sync(),
    " Sync:1": consistency.Sync(1),
}


@pytest.mark.parametrize("text", PARSED)
def test_policies_have_names(text):
    assert consistency.parse(text) == PARSED[text]


def test_local_steps_have_names():
    policy = consistency.parse("local:16,merge=each,outer=average")
    assert (policy.steps, policy.merge, policy.outer) == (16, "each", tfps.ModelAverage())
    policy = consistency.parse("local:16")
    assert (policy.steps, policy.merge) == (16, "round")
    assert isinstance(policy.outer, keras.optimizers.SGD)
    assert policy.outer.nesterov
    outer = consistency.parse("local:16,outer=sgd:1.5:0.25").outer
    assert (float(outer.learning_rate), outer.momentum, outer.nesterov) == (1.5, 0.25, True)
    assert not consistency.parse("local:16,outer=sgd:1.5").outer.nesterov


@pytest.mark.parametrize(
    "text",
    [
        *["", "bsp", "sync:", "sync:1,2", "sync:backups=x", "sync:-1", "sync:true", "sync:1.5"],
        *["bounded", "bounded:-1", "bounded:bound=1,bound=2", "async:steps=1"],
        *["local", "local:0", "local:4,merge=none", "local:4,outer=adam", "local:4,steps=4"],
        *["local:4,outer=sgd", "local:4,outer=sgd:x", "local:4,outer=sgd:1:2:3"],
    ],
)
def test_bad_names_list_those_that_exist(text):
    with pytest.raises(tfps.ConfigError) as caught:
        consistency.parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(text) in message
    for name in ("async:staleness_scaling=False", "bounded:bound", "sync:backups=0", "local:steps"):
        assert name in message


def test_model_average_keeps_less_than_all():
    with pytest.raises(tfps.ConfigError, match=r"decay=1\.0 must be at least 0 and below 1"):
        tfps.ModelAverage(1.0)


@pytest.mark.parametrize(
    ("outer", "message"),
    [
        (keras.optimizers.SGD(0.7, clipnorm=1.0), r"outer=SGD has clipnorm=1\.0"),
        (keras.optimizers.AdamW(weight_decay=0.1), r"outer=AdamW has weight_decay=0\.1"),
        (keras.optimizers.Adam(use_ema=True), "outer=Adam has use_ema=True"),
        (keras.optimizers.Adafactor(), "outer=Adafactor must be an elementwise optimizer"),
    ],
)
def test_outer_optimizers_that_differences_do_not_suit(outer, message):
    with pytest.raises(tfps.ConfigError, match=message):
        tfps.LocalSteps(4, outer=outer)
