"""Workers that are lost and return while no work loop runs, so that nobody tells the feed."""

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.training.test_exactly_once import Result
from tests.training.test_feed_losses import read
from tfps.cluster.events import Completion
from tfps.training.input import feed_of
from tfps.training.work_loop import WorkLoop

BATCHES = 8


def ranged(begin, end):
    return tf.data.Dataset.range(begin, end).batch(1)


FEEDS = {
    "splits": lambda: tfps.data.Splits([0, 2, 4, 6], lambda b: ranged(b, b + 2)),
    "dataset_fn": lambda: lambda c: ranged(c.worker_index * 4, c.worker_index * 4 + 4),
    "arrays": lambda: np.arange(BATCHES),
}


class Calls:
    """Two workers that do at once what they are given."""

    min_workers, enough, num_workers = 1, True, 2

    def __init__(self):
        self.living, self.lives, self.events, self.done = {0, 1}, [0, 0], [], []

    @property
    def pending(self):
        return len(self.done)

    def submit(self, worker, function, tag=None):
        assert worker in self.living
        with tf.device(f"/job:worker/task:{worker}/device:CPU:0"):
            self.done.append(Completion(worker, tag, function()))

    def next(self):
        return self.done.pop(0)

    def lose(self, worker):
        self.living.discard(worker)
        self.lives[worker] += 1


class Reading:
    """A run that reads all that it is given."""

    def __init__(self):
        self.read = []

    def call(self, worker, work):
        def call():
            found = [int(value) for value in read(work)]
            self.read += found
            return Result(len(found), len(found))

        return call

    def stopped(self):
        return False

    def began(self, first):
        pass

    def completed(self, worker, work, result):
        pass

    def ended(self, last, first, result):
        pass


@pytest.mark.parametrize("name", FEEDS)
def test_a_feed_learns_of_them_when_the_next_loop_begins(connect, name):
    connect(workers=2)
    calls = Calls()
    data = {"batch_size": 1, "shuffle": False} if name == "arrays" else {}
    feed = feed_of(FEEDS[name](), 2, None, 1, calls.living, **data)

    def epoch():
        run = Reading()
        feed.begin_epoch()
        WorkLoop(calls, feed, run).run()
        feed.end_epoch()
        return sorted(run.read)

    assert epoch() == list(range(BATCHES))
    for worker in (0, 1):
        calls.lose(worker)
        assert epoch() == list(range(BATCHES))
        calls.living.add(worker)
        assert epoch() == list(range(BATCHES))
    for worker in (0, 1):  # Both were lost at a time at which nobody worked, and are back.
        calls.lose(worker)
        calls.living.add(worker)
    assert epoch() == list(range(BATCHES))


@pytest.mark.parametrize("name", ["splits", "dataset_fn"])
def test_a_feed_is_made_where_somebody_lives(connect, name):
    connect(workers=2)
    made = []

    def noting(make):
        def note(*args):
            made.append(tf.constant(0).device)
            return make(*args)

        return note

    x = FEEDS[name]()
    if callable(x):
        x = noting(x)
    else:
        x.make_dataset = noting(x.make_dataset)
    feed = feed_of(x, 2, None, 1, {1})
    assert made and all("task:1" in device for device in made)
    calls, run = Calls(), Reading()
    calls.lose(0)
    feed.begin_epoch()
    WorkLoop(calls, feed, run).run()
    assert sorted(run.read) == list(range(BATCHES))
