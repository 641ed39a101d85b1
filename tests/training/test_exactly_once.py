"""Each unit is once on each ps, whoever is lost, and however late letters come.

What decides is real: the loop of a ps (its check and its roll), what the chief knows of works, and
the work loop. Played are the workers, the network, in which every letter comes at any later time,
and the losses, wrongly noticed ones too, whose workers go on sending.
"""

import collections
import copy
import dataclasses
from typing import ClassVar

import pytest
import tensorflow as tf
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tfps.cluster.events import Completion, Lost, Returned
from tfps.store import mailbox, server_loop
from tfps.store.mailbox import Header
from tfps.store.server_loop import Receipt, Roll, ServerLoop
from tfps.training import given, work_loop
from tfps.training.feeds import Work, WorkAhead
from tfps.training.given import GivenWorks
from tfps.training.lookahead import Lookahead
from tfps.training.work_loop import WorkLoop

PS, WORKERS = 2, 3


class Unit:
    """What is pushed: its number, its batches, and for a repeat who has it."""

    def __init__(self, number, batches, repeats=None):
        self.number, self.batches, self.repeats = number, batches, repeats


class Server:
    """A ps: the real check, with nothing to update."""

    def __init__(self):
        with tf.device("CPU:0"):
            types = [tf.int64]
            self._answers = tf.raw_ops.FIFOQueueV2(component_types=types, shared_name=str(id(self)))
        loop = ServerLoop.__new__(ServerLoop)
        loop.specs, loop._ledger = [], None
        loop._take_in = lambda *_: Receipt(tf.constant(0, tf.int64), tf.constant(True))

        def one(answers, row, *roll):
            return loop._one(None, Roll(*roll), answers, Header.of(row), [], [])[1:]

        specs = [tf.TensorSpec([], tf.resource), mailbox.HEADER, *Roll.specs()]
        self._one = tf.function(one, autograph=False).get_concrete_function(*specs)
        self.begin([0] * WORKERS)

    def begin(self, lives):
        nothing = tf.fill([WORKERS], tf.constant(-1, tf.int64))
        self._roll = Roll(tf.constant(lives, tf.int64), nothing, nothing, tf.constant(0, tf.int64))
        self.applied = collections.defaultdict(list)  # batch -> numbers of the units

    def take(self, kind, worker, life, number=0, masked=0):
        """Takes a letter in; returns the answer, or None if it was refused."""
        header = Header(kind, worker, life, number, masked, 0, 1, 1, 0, 0, 0)
        with tf.device("CPU:0"):
            row = tf.constant(list(header), tf.int64)
            self._roll = Roll(*self._one(self._answers, row, *self._roll))
            if not int(tf.raw_ops.QueueSizeV2(handle=self._answers)):
                return None
            answer = tf.raw_ops.QueueDequeueV2(handle=self._answers, component_types=[tf.int64])
        return answer[0].numpy().tolist()

    def push(self, worker, life, unit, masked):
        kind = mailbox.PUSH if unit.repeats is None else mailbox.REPEAT
        answer = self.take(kind, worker, life, unit.number, masked)
        if answer is not None and answer[1]:
            for batch in unit.batches:
                self.applied[batch].append(unit.number)


class Feed:
    """Batches, of which works hold numbers."""

    def __init__(self, count, group):
        self.ready, self.group, self.lives = list(range(count)), group, {}

    def take(self, worker, most):
        count = int(min(self.group, most, len(self.ready)))
        batches, self.ready = self.ready[:count], self.ready[count:]
        return self._work(batches) if batches else None

    def _work(self, batches):
        return Work(list(batches), len(batches), True, lease=list(batches))

    def repeat(self, work, index, worker, count=1):
        return self._work(work.lease[index : index + count])

    def give_back(self, worker, work, begin):
        self.ready = sorted([*work.lease[begin:], *self.ready])
        del work.lease[begin:]

    def done(self, worker, work, steps):
        pass

    def left(self, worker):
        pass

    def back(self, worker):
        pass


@dataclasses.dataclass
class Result:
    steps: int
    taken: int
    is_known: bool = True
    weight: float = 1.0
    metrics: list = dataclasses.field(default_factory=list)  # of which batches

    def __add__(self, other):
        taken, metrics = self.taken + other.taken, self.metrics + other.metrics
        return Result(self.steps + other.steps, taken, metrics=metrics)

    def counted(self):
        return dataclasses.replace(self, metrics=[])


@dataclasses.dataclass
class Life:
    """A worker's life: what it does, and what of it is on its way.

    Attributes:
      plan: what the present call still has to send; None outside of calls.
      channels: per ps, letters that have not come yet.
      held, pending: with overlap, the units that are trained on and pushed next.
      unreported: batches that were trained on and not reported.
    """

    worker: int
    life: int
    plan: list | None = None
    after: object = None
    channels: list = dataclasses.field(default_factory=lambda: [[] for _ in range(PS)])
    held: Unit | None = None
    pending: Unit | None = None
    unreported: list = dataclasses.field(default_factory=list)


class Calls:
    """The calls on workers; a call is made when the machine says so."""

    min_workers, enough, num_workers = 1, True, WORKERS

    def __init__(self):
        self.living, self.lives = set(range(WORKERS)), [0] * WORKERS
        self.present = {}  # worker -> (tag, the call)
        self.events = []

    @property
    def pending(self):
        return len(self.present)

    def submit(self, worker, function, tag=None):
        assert worker in self.living and worker not in self.present
        self.present[worker] = tag
        function()


class ExactlyOnce(RuleBasedStateMachine):
    """The chief, and `work_loop.Run` for its loop."""

    servers: ClassVar[list] = []

    @initialize(overlap=st.sampled_from([0, 1, 2]), exchange=st.booleans(), group=st.integers(1, 3))
    def begin(self, overlap, exchange, group):
        self._begin(overlap, exchange, group)

    def _begin(self, overlap, exchange, group):
        if not self.servers:
            self.servers.extend(Server() for _ in range(PS))
        self.exchange, self.overlap = exchange and not overlap, overlap
        self.calls = Calls()
        self.count, self.number = 12, 0
        self.feed = Feed(self.count, 1 if overlap else group)
        self.counted = collections.Counter()
        self.cut = None
        self.ghosts = []
        self._begin_run()
        self._take_cut()
        self._go_on()

    def _begin_run(self):
        self.lives = [Life(w, self.calls.lives[w]) for w in range(WORKERS)]
        for server in self.servers:
            server.begin(self.calls.lives)
        self._begin_loop()

    def _begin_loop(self):
        self.given = GivenWorks(WORKERS)
        self.source = self.feed
        if self.overlap:
            self.source = Lookahead(self.feed, WORKERS, lambda: False)
        self.loop = WorkLoop(self.calls, self.source, self)

    def _take_cut(self):
        applied = [copy.deepcopy(server.applied) for server in self.servers]
        self.cut = applied, self.number, self.counted.copy()

    def _go_on(self):
        """As `WorkLoop.run` goes on: it gives out work before it takes in what has happened."""
        self.loop._give_out()
        while self.calls.events:
            self.loop._take_in(self.calls.events.pop(0))
            self.loop._give_out()

    # What the work loop asks for, as `PolicyRun` does it.

    def began(self, first):
        pass

    def ended(self, last, first, result):
        self.counts(result)

    def stopped(self):
        return False

    def call(self, worker, work):
        life = self.lives[worker]
        number, self.number = self.number, self.number + work.takes
        following = work.following if self.overlap else work
        units = []
        if following is not None:
            self.given.give(worker, number, following, self.exchange)
            ids = list(following.source)
            units = [ids] if self.exchange else [[one] for one in ids]
            units = [Unit(number + i, batches) for i, batches in enumerate(units)]

        def call():
            if not self.overlap:
                life.plan, life.after = units, lambda: None
                trained = work.source
            else:
                trained = life.held.batches if life.held else []
                sent = life.held if self.overlap == 1 else life.pending
                life.plan = [sent] if sent and life.held else []

                def after():
                    if life.held:
                        life.pending = life.held
                    life.held = units[0] if units else None

                life.after = after
            life.trained = list(trained)

        return call

    def completed(self, worker, work, result):
        done = work.held if isinstance(work, WorkAhead) else work
        self.given.done(worker, [] if done is None else [done], result.is_known)

    def lost(self, worker, redo):
        life = self.calls.lives[worker]
        told = [server.take(mailbox.FENCE, worker, life) for server in self.servers]
        redos = [] if redo is None else [redo.known({p: t[1] for p, t in enumerate(told)})]
        loss = self.given.lose(worker, {p: t[0] for p, t in enumerate(told)})
        for work, begin in loss.back:
            self.feed.give_back(worker, work, begin)
        return redos + loss.redo

    def redo(self, worker, redo):
        work = self.feed.repeat(redo.work, redo.begin, worker, redo.count)
        life, unit = self.lives[worker], Unit(redo.number, work.source, redo.has)

        def call():
            life.plan, life.after, life.trained = [unit], lambda: None, []
            if redo.counts:
                life.repeated = list(work.source)

        life.repeated = []
        return work, call

    def redo_ended(self, worker, work, taken):
        pass

    def counts(self, result):
        self.counted.update(result.metrics)

    def returned(self, worker):
        def call():
            self.lives[worker] = Life(worker, self.calls.lives[worker], [], lambda: None)
            self.lives[worker].trained = []

        return call

    def begins(self, worker, value):
        self.lives[worker].plan = None

    # What happens.

    def _busy(self):
        return [self.lives[w] for w in sorted(self.calls.present)]

    def _senders(self):
        return [one for one in [*self._busy(), *self.ghosts] if one.plan]

    @precondition(lambda self: self._senders())
    @rule(which=st.integers(0, 20))
    def send(self, which):
        """A worker sends its next unit; one that is taken for lost does, too."""
        senders = self._senders()
        life = senders[which % len(senders)]
        unit = life.plan.pop(0)
        for channel in life.channels:
            channel.append(unit)

    def _channels(self):
        lives = [*self.lives, *self.ghosts]
        return [(life, p) for life in lives for p in range(PS) if life.channels[p]]

    @precondition(lambda self: self._channels())
    @rule(which=st.integers(0, 40))
    def deliver(self, which):
        """A letter comes; those of a life come to a ps in their order."""
        channels = self._channels()
        life, p = channels[which % len(channels)]
        unit = life.channels[p].pop(0)
        masked = 0
        if unit.repeats is not None:
            masked = int(mailbox.masked(tf.constant(mailbox.repeats_of(unit.repeats)), p))
        self.servers[p].push(life.worker, life.life, unit, masked)

    def _done(self):
        return [one for one in self._busy() if not one.plan and not any(one.channels)]

    @precondition(lambda self: self._done())
    @rule(which=st.integers(0, 20), known=st.booleans())
    def finish(self, which, known):
        """A call ends, since all of its letters are answered."""
        done = self._done()
        life = done[which % len(done)]
        tag = self.calls.present.pop(life.worker)
        life.after()
        life.plan = None
        result = self._result(life, tag, known)
        self.loop._take_in(Completion(life.worker, tag, result))
        self._go_on()

    def _result(self, life, tag, known):
        if isinstance(tag, work_loop._Again):
            return Result(tag.redo.count, tag.redo.count, metrics=life.repeated)
        if not isinstance(tag, tuple):
            return None
        life.unreported += life.trained
        metrics = []
        if known:
            metrics, life.unreported = life.unreported, []
        return Result(tag[1].count, tag[1].takes, known, metrics=metrics)

    @precondition(lambda self: len(self.calls.living) > 1)
    @rule(which=st.integers(0, 20), dies=st.booleans(), another=st.booleans())
    def lose(self, which, dies, another):
        """A worker is taken for lost; what it has sent comes later, or it goes on sending.

        Another one may be lost in the same moment: they were on one host.
        """
        living = sorted(self.calls.living)
        which %= len(living)
        for worker in (living[which:] + living[:which])[: 1 + (another and len(living) > 2)]:
            self._lose(worker, dies)
        self._go_on()

    def _lose(self, worker, dies):
        busy = worker in self.calls.present
        tag = self.calls.present.pop(worker, None)
        self.calls.living.discard(worker)
        self.calls.lives[worker] += 1
        ghost = self.lives[worker]
        if dies:
            ghost.plan = None
        self.ghosts.append(ghost)
        self.lives[worker] = Life(worker, -1)
        self.calls.events.append(Lost(worker, tag, busy, "is tested"))

    @precondition(lambda self: len(self.calls.living) < WORKERS)
    @rule(which=st.integers(0, 20))
    def come_back(self, which):
        lost = sorted(set(range(WORKERS)) - self.calls.living)
        worker = lost[which % len(lost)]
        self.calls.living.add(worker)
        self.loop._take_in(Returned(worker))
        self._go_on()

    def _is_over(self):
        return not (self.calls.present or self.loop._redo or self.feed.ready)

    @precondition(lambda self: self._is_over())
    @rule(lost=st.booleans(), reached=st.sets(st.integers(0, PS - 1)), which=st.integers(0, 20))
    def end(self, lost, reached, which):
        """Reports are brought, and what is pending is pushed; a worker may be lost meanwhile."""
        living = sorted(self.calls.living)
        gone = living[which % len(living)] if lost and len(living) > 1 else None
        for worker in living:
            life = self.lives[worker]
            self.counted.update(life.unreported)
            life.unreported = []
            self.given.done(worker, [], True)
        # The loss of a worker whose report has come is noticed in the push.
        for worker in living:
            life = self.lives[worker]
            for p, server in enumerate(self.servers):
                waits = life.pending is not None and self.overlap == 2
                if waits and (worker != gone or p in reached):
                    server.push(worker, life.life, life.pending, 0)
            if worker != gone:
                self.given.settled(worker)
                life.held = life.pending = None
        if gone is not None:
            self._lose(gone, True)
        else:
            self._take_cut()
            self.feed.ready += range(self.count, self.count + 6)
            self.count += 6
        self._go_on()

    @rule(rarely=st.integers(0, 9))
    def lose_a_ps(self, rarely):
        """All go back to the cut; letters to the inboxes of before come to nothing."""
        if rarely != 9:
            return
        applied, self.number, counted = self.cut
        self.calls.present.clear()
        self.ghosts = []
        self._begin_run()
        for server, before in zip(self.servers, applied, strict=True):
            server.applied = copy.deepcopy(before)
        # What came after the cut is dealt out again.
        known = {batch for batch in applied[0]}
        self.feed.ready = [b for b in range(self.count) if b not in known]
        self.counted = counted.copy()
        self._go_on()

    @invariant()
    def none_is_doubled(self):
        for p, server in enumerate(getattr(self, "servers", [])):
            for batch, units in server.applied.items():
                assert len(units) == 1, f"batch {batch} {len(units)} times on ps {p}"
        assert not [b for b, n in getattr(self, "counted", {}).items() if n > 1]

    def teardown(self):
        """Without further losses, everything comes to its end."""
        if not hasattr(self, "loop"):
            return
        for _ in range(10_000):
            if self._senders():
                self.send(0)
            elif self._channels():
                self.deliver(0)
            elif self._done():
                self.finish(0, True)
            elif self._is_over():
                break
            else:
                raise AssertionError("nobody does what is left")
        for worker in sorted(self.calls.living):
            life = self.lives[worker]
            self.counted.update(life.unreported)
            if self.overlap == 2 and life.pending is not None:
                for server in self.servers:
                    server.push(worker, life.life, life.pending, 0)
        self.none_is_doubled()
        for p, server in enumerate(self.servers):
            assert sorted(server.applied) == list(range(self.count)), f"lost on ps {p}"
        same = [{b: u for b, u in server.applied.items()} for server in self.servers]
        assert all(one == same[0] for one in same), "a batch has two numbers"
        assert sorted(self.counted) == list(range(self.count)), "metrics are lost"


TestExactlyOnce = ExactlyOnce.TestCase


def life_unchecked(monkeypatch):
    monkeypatch.setattr(ServerLoop, "_is_present", lambda self, roll, header: tf.constant(True))


def mask_ignored(monkeypatch):
    monkeypatch.setattr(mailbox, "masked", lambda repeats, p: tf.constant(0))


def repeated_without_looking(monkeypatch):
    lose = GivenWorks.lose
    monkeypatch.setattr(
        GivenWorks, "lose", lambda self, worker, last: lose(self, worker, dict.fromkeys(last, -1))
    )


def repeats_not_looked_for(monkeypatch):
    monkeypatch.setattr(given.Redo, "known", lambda self, repeated: self)


def fence_keeps_last(monkeypatch):
    noted = server_loop._noted
    monkeypatch.setattr(server_loop, "_noted", lambda *a: noted(*a)._replace(last=a[0].last))


@pytest.mark.long
@pytest.mark.parametrize(
    "mutation",
    [
        life_unchecked,
        mask_ignored,
        repeated_without_looking,
        repeats_not_looked_for,
        fence_keeps_last,
    ],
    ids=lambda f: f.__name__,
)
def test_the_machine_sees_a_mutation(monkeypatch, mutation):
    mutation(monkeypatch)
    machine = type("Mutated", (ExactlyOnce,), {"servers": []})
    with pytest.raises(AssertionError):
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
