"""A `PyDataset` with workers is read ahead, and every batch is used once all the same."""

import contextlib
import threading
import time

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import mlp
from tests.training.test_feed_laws import epoch, numbers, together
from tfps.training.feeds import FeedPosition
from tfps.training.input import feed_of

BATCHES = 25  # More than a queue holds.


class Ahead(keras.utils.PyDataset):
    """Batch i is of the number i; without an end if it has no length."""

    def __init__(self, length=BATCHES):
        super().__init__(workers=2, max_queue_size=5)
        self._length = length

    @property
    def num_batches(self):
        return self._length

    def __getitem__(self, index):
        return (np.array([index]),)


@pytest.fixture(autouse=True)
def _connected(connect):
    connect(workers=2, ps=2)


@pytest.fixture
def make():
    """Makes feeds, and closes them."""
    made = []

    def make(length=BATCHES, steps=None, **arguments):
        made.append(feed_of(Ahead(length), 2, steps, 1, shuffle=False, **arguments))
        return made[-1]

    yield make
    for feed in made:
        feed.close()


def some(feed, count):
    """Uses some batches of the epoch that has begun."""
    found = []
    for _ in range(count):
        work = feed.take(0)
        found += numbers(work)
        feed.done(0, work, 1)
    return found


@pytest.mark.parametrize("order", [None, 3])
@pytest.mark.parametrize("steps", [BATCHES, 5, None])
def test_passes_are_whole_however_many_batches_an_epoch_has(make, order, steps):
    feed = make(steps=steps, order=order)
    for _ in range(3):
        epochs = BATCHES // steps if steps else 1
        assert [n for _ in range(epochs) for n in together(epoch(feed))] == list(range(BATCHES))


def test_what_is_read_ahead_when_a_pass_begins_is_used_once(make):
    feed = make(steps=BATCHES)
    for _ in range(3):
        feed.begin_epoch()
        time.sleep(0.2)  # It is read now.
        assert some(feed, BATCHES) == list(range(BATCHES))
        feed.end_epoch()


@pytest.mark.parametrize("length", [BATCHES, None])
@pytest.mark.parametrize("order", [None, 3])
def test_what_was_read_ahead_is_dropped_where_training_goes_back(make, length, order):
    feed = make(length, steps=BATCHES, order=order)
    feed.begin_epoch()
    some(feed, 4)
    position = feed.position()
    some(feed, 7)
    feed.seek(position)
    assert together(epoch(feed)) == list(range(4, BATCHES))
    feed.seek(FeedPosition((0,)))
    assert together(epoch(feed)) == list(range(BATCHES))
    feed.reset()
    assert together(epoch(feed)) == list(range(BATCHES))


def test_an_epoch_that_is_left_leaves_nothing_for_the_next_one(make):
    feed = make()
    for count in (3, 7):
        feed.reset()
        feed.begin_epoch()
        assert some(feed, count) == list(range(count))


@pytest.mark.parametrize("fails", [False, True])
def test_nobody_reads_ahead_when_fit_is_over(connect, fails):
    class Columns(keras.utils.PyDataset):
        def __len__(self):
            return BATCHES

        def __getitem__(self, index):
            return np.zeros([1, 8], np.float32), np.zeros([1, 1], np.float32)

    def fail():
        if fails:
            raise ZeroDivisionError

    def reading():
        return [t for t in threading.enumerate() if t.name.startswith("Worker_")]

    model, before = mlp(), reading()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect(workers=1))
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: fail())
    x = Columns(workers=2, max_queue_size=2)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        trainer.fit(x, steps_per_epoch=3, validation_data=x, validation_steps=2,
                    callbacks=[callback], verbose=0)  # fmt: skip
    deadline = time.monotonic() + 10
    while set(reading()) - set(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(reading()) - set(before)
