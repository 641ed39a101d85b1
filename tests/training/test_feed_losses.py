"""What every `Feed` promises when workers are lost: each batch is trained on once.

Workers are played here. A call reads its batches, and its worker may be lost after some of them.
The test decides which batches the servers then have, have in part, or do not have.
"""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings, strategies as st

import tfps
from tfps.cluster import members
from tfps.training.input import feed_of
from tfps.training.lookahead import Lookahead
from tfps.training.passes import Passes

WORKERS = 2


@pytest.fixture(autouse=True)
def _connected(connect):
    connect(workers=WORKERS, ps=2)


def read(work):
    """The numbers of a work's batches, each the first of its examples."""
    found = []
    for part in work.steps:
        source = part.source
        if isinstance(source, tf.data.Iterator):
            for _ in range(part.count):
                element = source.get_next_as_optional()
                if not element.has_value():
                    break
                found.append(int(element.get_value()[0]))
            continue
        tensor = tf.nest.flatten(source)[0].numpy().reshape(part.count, -1)
        found += tensor[:, 0].tolist()
    return found


def uneven(context):
    """Seven batches for worker 0 and four for worker 1, of which nobody knows how many they are."""
    begin, count = ((0, 7), (7, 4))[context.worker_index]
    return tf.data.Dataset.range(begin, begin + count).filter(lambda i: i >= 0).batch(1)


def shuffled(context):
    """The same batches in an order that each pass draws anew."""
    begin, count = ((0, 7), (7, 4))[context.worker_index]
    return tf.data.Dataset.range(begin, begin + count).shuffle(7).batch(1)


def split(bounds):
    """The batches of a split, in an order that it draws."""
    return tf.data.Dataset.range(*bounds).shuffle(3).batch(1)


def of_unknown_length(bounds):
    return split(bounds).filter(lambda i: i[0] >= 0)


def splits(make):
    return tfps.data.Splits([(0, 4), (4, 4), (4, 9), (9, 11)], make)


def several_shapes():
    """Batches of one or two examples."""
    for i in range(11):
        yield np.full(1 + i % 3 // 2, i)


def ragged():
    spec = tf.TensorSpec([None], tf.int64)
    return tf.data.Dataset.from_generator(several_shapes, output_signature=spec)


INPUTS = {
    "arrays": lambda: (np.arange(11), {"batch_size": 1, "shuffle": False}),
    "several shapes": lambda: (ragged(), {}),
    "dataset_fn": lambda: (uneven, {}),
    "shuffled dataset_fn": lambda: (shuffled, {}),
    "splits": lambda: (splits(split), {}),
    "splits of unknown length": lambda: (splits(of_unknown_length), {}),
}


class Players:
    """Workers that are lost as the moves say, and the chief that deals with it."""

    def __init__(self, feed, source, moves):
        self.feed, self.source, self.moves = feed, source, iter(moves)
        self.lost: set[int] = set()
        self.calls: dict[int, tuple] = {}  # worker -> (work, its batches)
        self.repeats: collections.deque = collections.deque()
        self.trained: list[int] = []

    def play(self):
        """Plays until there is nothing to do; the moves decide, and without moves all goes well."""
        while True:
            move = next(self.moves, 0)
            worker = move % WORKERS
            kind = ("end", "end", "start", "lose", "back")[move // WORKERS % 5]
            if kind == "lose" and len(self.lost) < WORKERS - 1 and worker not in self.lost:
                self.lose(worker, move)
            elif kind == "back" and worker in self.lost:
                self.lost.discard(worker)
                self.source.back(worker)
            elif kind == "end" and self.calls:
                self.end(sorted(self.calls)[worker % len(self.calls)])
            elif not self.start(worker) and not any(map(self.start, range(WORKERS))):
                if not self.calls:
                    return
                self.end(min(self.calls))

    def start(self, worker):
        if worker in self.lost or worker in self.calls:
            return False
        if self.repeats:
            work = self.feed.repeat(*self.repeats.popleft(), worker)
            self.calls[worker] = work, read(work), True
            return True
        work = self.source.take(worker)
        if work is not None:
            self.calls[worker] = work, self.taken(work), False
        return work is not None

    def taken(self, work):
        return read(work)

    def end(self, worker):
        work, found, repeats = self.calls.pop(worker)
        if repeats:
            self.trained += found
            self.feed.done(worker, work, len(found))
        else:
            self.end_taken(worker, work, found)

    def end_taken(self, worker, work, found):
        self.trained += found
        self.source.done(worker, work, len(found))

    def lose(self, worker, move):
        """Loses a worker, after some of its batches, the last of them on some servers only."""
        self.lost.add(worker)
        work, found, repeats = self.calls.pop(worker, (None, [], False))
        if move % 3 == 0:
            self.source.left(worker)
        if repeats:
            self.lose_part(self.feed, worker, work, found, move)
        elif work is not None:
            self.lose_taken(worker, work, found, move)
        if move % 3:
            self.source.left(worker)

    def lose_taken(self, worker, work, found, move):
        self.lose_part(self.source, worker, work, found, move)

    def lose_part(self, source, worker, work, found, move):
        begin = move % (len(found) + 1)
        self.trained += found[: max(0, begin - 1)]
        if begin:
            self.repeats.append((work, begin - 1))
        source.give_back(worker, work, begin)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("name", INPUTS)
@settings(
    max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(moves=st.lists(st.integers(0, 239), max_size=60))
def test_each_batch_is_trained_on_once(name, group, moves):
    x, arguments = INPUTS[name]()
    feed = feed_of(x, WORKERS, None, group, **arguments)
    for _ in range(2):
        feed.begin_epoch()
        players = Players(feed, feed, moves)
        players.play()
        feed.end_epoch()
        assert sorted(players.trained) == list(range(11))
        for worker in players.lost:
            feed.back(worker)


@pytest.mark.parametrize("name", ["arrays", "dataset_fn", "splits"])
@settings(
    max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(moves=st.lists(st.integers(0, 239), max_size=60))
def test_an_epoch_of_steps_has_as_many_batches(name, moves):
    x, arguments = INPUTS[name]()
    feed = feed_of(x, WORKERS, 5, 1, **arguments)
    trained = []
    for _ in range(2):
        feed.begin_epoch()
        players = Players(feed, feed, moves)
        players.play()
        feed.end_epoch()
        assert len(players.trained) == 5
        trained += players.trained
        for worker in players.lost:
            feed.back(worker)
    if name != "dataset_fn":
        assert len(set(trained)) == 10  # None comes twice in a pass.


class AheadPlayers(Players):
    """Workers that hold a batch while they take the next one."""

    def __init__(self, *args):
        super().__init__(*args)
        self.held = [None] * WORKERS

    def taken(self, work):
        return [] if work.following is None else read(work.following)

    def end_taken(self, worker, work, found):
        if work.held is not None:
            self.trained += self.held[worker]
        self.held[worker] = found
        self.source.done(worker, work, len(found))

    def lose_taken(self, worker, work, found, move):
        begin = move % 2
        if begin and work.held is not None:
            self.repeats.append((work.held, 0))
        self.source.give_back(worker, work, begin)


@pytest.mark.parametrize("name", INPUTS)
@settings(
    max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(moves=st.lists(st.integers(0, 239), max_size=60))
def test_each_batch_that_is_held_is_trained_on_once(name, moves):
    x, arguments = INPUTS[name]()
    feed = feed_of(x, WORKERS, None, 1, **arguments)
    feed.begin_epoch()
    players = AheadPlayers(feed, Lookahead(feed, WORKERS, lambda: False), moves)
    players.play()
    assert sorted(players.trained) == list(range(11))


@given(length=st.integers(0, 12), moves=st.lists(st.integers(0, 10**6), max_size=60))
def test_the_passes_deal_each_batch_once(length, moves):
    passes, open_, repeats, trained = Passes(), [], [], []
    passes.restart()

    def settle(lease):
        found = max(0, min(lease.count, length - lease.begin))
        trained.extend(range(lease.begin, lease.begin + found))
        passes.done(lease, found)

    for move in moves:
        kind, rest = move % 4, move // 4
        if kind == 0 and repeats:
            open_.append(passes.repeat(*repeats.pop()))
        elif kind in (0, 1) and not passes.is_over:
            open_.append(passes.deal(1 + rest % 4))
        elif kind == 2 and open_:
            settle(open_.pop(rest % len(open_)))
        elif open_:
            lease = open_.pop(rest % len(open_))
            there = max(0, min(lease.count, length - lease.begin))
            begin = rest % (there + 1)
            trained.extend(range(lease.begin, lease.begin + max(0, begin - 1)))
            if begin:
                repeats.append((lease, begin - 1))
            passes.give_back(lease, begin)
            assert passes.give_back(lease, begin) == 0
    for again in repeats:
        settle(passes.repeat(*again))
    for lease in open_:
        settle(lease)
    while not passes.is_over:
        settle(passes.deal(3))
    assert sorted(trained) == list(range(length))
    assert not passes.unsettled and not passes.outstanding


def test_a_worker_that_was_lost_between_two_calls_makes_no_dataset(connect):
    strategy = connect(workers=WORKERS, ps=2)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    trainer, devices = tfps.Trainer(model, strategy), []

    def make(context):
        devices.append(tf.constant(0).device.split("/device")[0])
        data = np.ones((8, 4), np.float32), np.ones((8, 1), np.float32)
        return tf.data.Dataset.from_tensor_slices(data).batch(4)

    trainer.evaluate(make, verbose=0)
    assert {d[-1] for d in devices} == {"0", "1"}
    devices.clear()
    known, lost = members.of(strategy.cluster), members.Task("worker", 1)
    known.lose(lost, "is gone, says a test")
    try:
        # If it is back, it may take part, but what is made before anybody looks is on the other.
        trainer._session.calls._admissions.seek = lambda *_: None
        trainer.evaluate(make, verbose=0)
        assert {d[-1] for d in devices} == {"0"}
    finally:
        known.admit(lost, None)
