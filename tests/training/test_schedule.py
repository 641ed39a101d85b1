"""Who may step when: the promises of the bookkeeping, under any order of events."""

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tfps.training.schedule import Clocks, Rounds

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
        return {*self.computing, *self.pushing}

    @rule(worker=WORKERS)
    def join(self, worker):
        if worker in self.computing:
            return
        self.rounds.join(worker)  # It may have come back while another one pushes for it.
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

    @precondition(lambda self: self.pushing)
    @rule(pick=PICK)
    def push(self, pick):
        """The push is through, though its worker may be gone, and another one have made it."""
        worker = pick(self.pushing)
        self.rounds.pushed(worker)
        self.pushing.discard(worker)
        if not self.pushing:
            self.round += 1
        self.poll()

    @invariant()
    def no_deadlock(self):
        """Where members are there and nothing of theirs is under way, one may start."""
        if self.members and not self.pushing and not self.computing.keys() & self.members:
            assert any(self.rounds.allowance(w) for w in self.members)

    @invariant()
    def whoever_is_in_neither_round_nor_push_may_start(self):
        """So whatever others do, a member is only ever held up by a push under way."""
        for worker in self.members - self.busy - self.held.keys():
            assert self.pushing or self.rounds.allowance(worker)


TestClocks = ClocksMachine.TestCase
TestRounds = RoundsMachine.TestCase
