"""What every `Feed` promises: one table of all kinds of input, run through the same laws."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps.training.input import feed_of
from tfps.training.worker_dataset import RemoteDataset
from tfps.worker.batch_loop import Stack

WORKERS = 2
BATCHES = 10


def dataset(count=BATCHES, begin=0):
    """Batches of one number each: begin, begin + 1 and so on."""
    return tf.data.Dataset.range(begin, begin + count).batch(1)


def per_worker(context):
    """Five batches for each worker, different ones."""
    return dataset(5, 5 * context.worker_index)


def generator():
    for i in range(BATCHES):
        yield (np.array([i]),)


class Listed(keras.utils.PyDataset):
    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        return (np.array([index]),)


def split(bounds):
    """The batches of a split."""
    return dataset(bounds[1] - bounds[0], bounds[0])


INPUTS = {
    "arrays": lambda: (np.arange(BATCHES), {"batch_size": 1, "shuffle": False}),
    "dataset": lambda: (dataset(), {}),
    "PyDataset": lambda: (Listed(), {"shuffle": False}),
    "generator": lambda: (generator(), {}),
    "dataset_fn": lambda: (per_worker, {}),
    "splits": lambda: (tfps.data.Splits(tfps.data.ranges(BATCHES, 3), split), {}),
}
AGAIN = [name for name in INPUTS if name != "generator"]  # A generator is over after one pass.


@pytest.fixture(autouse=True)
def _connected(connect):
    connect(workers=WORKERS, ps=2)


def make(name, steps=None, group=1):
    x, arguments = INPUTS[name]()
    return feed_of(x, WORKERS, steps, group, **arguments)


def numbers(work):
    """The batches of a work, and how many there were."""
    if isinstance(work.source, tf.data.Iterator):
        found = []
        for _ in range(work.count):
            element = work.source.get_next_as_optional()
            if not element.has_value():
                break
            found += tf.nest.flatten(element.get_value())[0].numpy().tolist()
        return found
    found = []
    for part in work.steps:
        batches = part.source.batches if isinstance(part.source, Stack) else part.source
        found += tf.nest.flatten(batches)[0].numpy().reshape(-1).tolist()
    return found


def epoch(feed, most=100):
    """The batches of an epoch by worker, dealt out in turns."""
    feed.begin_epoch()
    used = [[] for _ in range(WORKERS)]
    busy = list(range(WORKERS))
    while busy:
        for worker in list(busy):
            work = feed.take(worker, most)
            if work is None:
                busy.remove(worker)
                continue
            assert 1 <= work.count <= min(feed.group, most)
            found = numbers(work)
            used[worker] += found
            feed.done(worker, work, len(found))
    feed.end_epoch()
    return used


def together(used):
    return sorted(n for own in used for n in own)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("group", "most"), [(1, 100), (4, 100), (4, 3)])
def test_an_epoch_has_every_batch_once(name, group, most):
    used = epoch(make(name, group=group), most)
    assert together(used) == list(range(BATCHES))
    assert all(used)  # Every worker got some.


@pytest.mark.parametrize("name", AGAIN)
@pytest.mark.parametrize("group", [1, 4])
def test_every_epoch_is_a_pass(name, group):
    feed = make(name, group=group)
    first = epoch(feed)
    assert feed.position().batches == (0,) * len(feed.position().batches)
    assert together(epoch(feed)) == together(first)


@pytest.mark.parametrize("name", INPUTS)
def test_steps_per_epoch_go_on_where_the_last_epoch_ended(name):
    feed = make(name, steps=4)
    assert feed.num_batches == 4
    used = together(epoch(feed)) + together(epoch(feed))
    assert len(used) == 8
    assert len(set(used)) == 8  # None comes twice in a pass.


@pytest.mark.parametrize("name", INPUTS)
def test_no_steps_are_the_whole_input(name):
    feed = make(name, steps=0)
    feed.begin_epoch()
    used = []
    while (works := [w for w in (feed.take(0), feed.take(1)) if w]) and len(used) <= BATCHES:
        for work in works:
            found = numbers(work)
            used += found
            feed.done(0, work, len(found))
    assert sorted(used) == list(range(BATCHES))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("steps", [None, 4])
def test_a_sample_is_dealt_out_all_the_same(name, steps):
    feed, other = make(name, steps), make(name, steps)
    for again in range(2 if name in AGAIN else 1):
        before = feed.position()
        sample = tf.nest.flatten(feed.sample())[0].numpy().tolist()
        assert feed.position() == before
        if not again:
            feed.reset()
            assert feed.sample() is not None
            feed.seek(before)
        used = epoch(feed)
        assert used == epoch(other) or name == "splits"  # Whoever is first goes on with a split.
        # What can be read without being taken is looked at from its beginning.
        assert sample[0] in (together(used) if name in ("arrays", "dataset", "generator") else [0])
        assert feed.position() == other.position()
    feed.begin_epoch()
    assert feed.sample() is not None or (name == "generator" and steps is None)


@pytest.mark.parametrize("name", AGAIN)
def test_reset_begins_with_the_first_batch(name):
    feed = make(name, steps=4)
    first = epoch(feed)
    epoch(feed)
    feed.reset()
    assert epoch(feed) == first


@pytest.mark.parametrize("name", ["dataset_fn", "splits"])
def test_what_is_repeated_in_a_row_is_read_in_a_row(name, monkeypatch):
    """A pass is not read from its beginning for each unit that a lost worker had."""
    feed, begun, iterator = make(name, group=5), [], RemoteDataset.iterator

    def noted(remote, turn, begin):
        begun.append(begin)
        return iterator(remote, turn, begin)

    monkeypatch.setattr(RemoteDataset, "iterator", noted)
    feed.begin_epoch()
    work = feed.take(0)
    lost = numbers(work)
    assert len(lost) >= 3
    begun.clear()
    feed.left(0)
    again = [feed.repeat(work, i, 1) for i in range(len(lost))]
    assert [numbers(one) for one in again] == [[n] for n in lost] and begun == [0]
    feed.left(1)
    feed.back(1)
    assert numbers(feed.repeat(work, 1, 1)) == lost[1:2] and begun == [0, 1]


def test_a_pass_that_was_left_before_its_first_batch_has_no_batches():
    """A server is lost when an epoch has begun, and training goes back into the one before."""
    feed = feed_of(np.arange(BATCHES), WORKERS, None, 1, batch_size=1, shuffle=True, order=3)
    feed.begin_epoch()
    used = []
    for i in range(BATCHES):
        if i == 6:
            middle = feed.position()
        work = feed.take(0)
        used.append((numbers(work), feed.ranges(work)))
        feed.done(0, work, 1)
    feed.end_epoch()
    feed.begin_epoch()
    feed.seek(middle)
    feed.begin_epoch()
    again = feed.take(0)
    assert (numbers(again), feed.ranges(again)) == used[6]


@pytest.mark.parametrize("steps", [None, 4])
def test_a_generator_goes_on_where_it_is(steps):
    """It cannot go back, but nothing that it has given comes again."""
    feed = feed_of(generator(), WORKERS, steps, 1, order=3)
    feed.begin_epoch()
    positions, used = [feed.position()], []
    for _ in range(3):
        work = feed.take(0)
        used += numbers(work)
        feed.done(0, work, 1)
        positions.append(feed.position())
    feed.seek(positions[1])
    rest = together(epoch(feed))
    assert used + rest == list(range(BATCHES if steps is None else 6))
    feed.seek(positions[0])
    if steps is not None:
        assert together(epoch(feed)) == list(range(6, BATCHES))


# Who goes on with a split that is begun is whoever asks first: see `test_splits.py`.
@pytest.mark.parametrize("name", [name for name in AGAIN if name != "splits"])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_another_feed_goes_on_at_a_position(name, epochs):
    feed = make(name, steps=4)
    for _ in range(epochs):
        epoch(feed)
    position = feed.position()
    other = make(name, steps=4)
    other.seek(position)
    assert other.position() == position
    assert epoch(other) == epoch(feed)
    assert other.position() == feed.position()


@pytest.mark.parametrize("name", ["dataset_fn", "splits"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_position_has_what_is_given_back_of_an_older_pass(name, first):
    """The last batches of a pass are lost with their worker when the next pass has begun."""
    feed, used = make(name, steps=100), []
    feed.begin_epoch()
    works, turns = [], itertools.cycle((0, 1))
    while len(used) < BATCHES:
        worker = next(turns)
        if (one := work(feed, worker, used)) is not None:
            works.append((worker, one))
    for _ in range(first):
        work(feed, 1, used)
    begun = feed.take(1)
    feed.give_back(1, begun, 0)
    for worker, one in works[-2:]:
        feed.give_back(worker, one, 0)
    position = feed.position()
    other = make(name, steps=100)
    other.seek(position)
    assert other.position() == position
    other.begin_epoch()
    again, wanted = [], BATCHES + 2 - first
    for _ in range(BATCHES):
        for worker in (0, 1):
            if len(again) < wanted:
                work(other, worker, again)
    kept = used[: BATCHES - 2] + used[BATCHES:]
    assert sorted(kept + again) == sorted([*range(BATCHES)] * 2)


def work(feed, worker, used):
    """The next batches of a worker, which are used; None if there is none for it."""
    if (one := feed.take(worker)) is not None:
        found = numbers(one)
        feed.done(worker, one, len(found))
        used += found
        return one if found else work(feed, worker, used)
    return None


@pytest.mark.parametrize("name", AGAIN)
def test_regrouping_holds_from_the_next_work_on(name):
    feed = make(name, group=1)
    feed.begin_epoch()
    assert feed.take(0).count == 1
    feed.regroup(3)
    assert feed.group == 3
    assert feed.take(0).count == 3


def test_a_position_of_another_kind_of_input_is_refused():
    position = make("dataset_fn", steps=4).position()
    with pytest.raises(tfps.DataError, match="position is of 2 datasets"):
        make("dataset", steps=4).seek(position)
    position = make("dataset", steps=4).position()
    with pytest.raises(tfps.DataError, match=r"position is of 1 dataset\(s\), but there are 2"):
        make("dataset_fn", steps=4).seek(position)
