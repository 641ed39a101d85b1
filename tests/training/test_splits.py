"""Splits: which worker reads which, in what order, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp
from tfps.training.input import feed_of

EXAMPLES = 24


def numbered(bounds):
    return tf.data.Dataset.range(*bounds).batch(2)


def splits(make=numbered, **arguments):
    return tfps.data.Splits(tfps.data.ranges(EXAMPLES, 4), make, **arguments)


def read(work):
    found = []
    for _ in range(work.count):
        element = work.source.get_next_as_optional()
        if not element.has_value():
            break
        found.append(element.get_value().numpy().tolist())
    return found


def epoch(feed, worker=0):
    feed.begin_epoch()
    found = []
    while (work := feed.take(worker)) is not None:
        batches = read(work)
        feed.done(worker, work, len(batches))
        found += batches
    feed.end_epoch()
    return found


def test_ranges():
    assert tfps.data.ranges(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert tfps.data.ranges(0, 3) == []
    with pytest.raises(tfps.DataError, match="size=0"):
        tfps.data.ranges(7, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], numbered), "no items"),
        ((["a"], "b"), "make_dataset='b' is no function"),
        ((["a"], numbered, True, 0.5), "seed=0.5 is no whole number"),
    ],
)
def test_what_splits_refuse(arguments, message):
    with pytest.raises(tfps.DataError, match=message):
        tfps.data.Splits(*arguments)


def test_orders_follow_from_the_seed_and_the_pass():
    one, same, other = splits(seed=1), splits(seed=1), splits(seed=2)
    assert one.order(3) == same.order(3)
    assert sorted(one.order(3)) == list(range(6))
    assert len({tuple(x.order(turn)) for x in (one, other) for turn in range(3)}) == 6
    assert splits(shuffle=False).order(3) == list(range(6))


def test_who_is_free_gets_the_next_split(connect):
    connect(workers=2)
    feed = feed_of(splits(shuffle=False), 2, None, 2)
    feed.begin_epoch()
    slow, found = feed.take(0), []
    while (work := feed.take(1)) is not None:
        assert "task:1" in work.source._iterator_resource.device
        found += [n for batch in read(work) for n in batch]
        feed.done(1, work, work.count)
    assert found == list(range(4, EXAMPLES))
    feed.left(0)
    feed.give_back(0, slow, 1)  # One of its two batches was trained on.
    work = feed.take(1)
    assert read(work)[:1] == [[2, 3]]


def test_what_a_split_draws_follows_from_seed_and_epoch(connect):
    connect(workers=2)

    def drawn(bounds):
        numbers = np.random.permutation(np.arange(*bounds))
        return tf.data.Dataset.from_tensor_slices(numbers).shuffle(4).batch(2)

    np.random.seed(7)
    first = np.random.random()
    np.random.seed(7)
    one, same = (feed_of(splits(drawn), 2, None, 2) for _ in range(2))
    epochs = [epoch(one), epoch(one)]
    assert np.random.random() == first  # The user's own seeds are where they were.
    assert epochs[0] != epochs[1]
    assert [epoch(same, worker=1), epoch(same, worker=1)] == epochs
    one.reset()
    assert epoch(one) == epochs[0]  # Every validation sees the same batches.


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("calls", [0, 1, 4, 5])
def test_another_feed_goes_on_within_an_epoch(connect, steps, calls):
    connect(workers=2)
    feed, other = (feed_of(splits(), 2, steps, 1) for _ in range(2))
    epoch(feed), epoch(feed)
    feed.begin_epoch()
    used = []
    for i in range(calls):
        if (work := feed.take(i % 2)) is not None:
            used += (batches := read(work))
            feed.done(i % 2, work, len(batches))
    held = feed.take(0)
    position = feed.position()
    other.seek(position)
    assert other.position() == position
    rest = epoch(other)
    if held is not None:
        used += (batches := read(held))
        feed.done(0, held, len(batches))
        assert batches[0] in rest
        rest.remove(batches[0])
    while (work := feed.take(0) or feed.take(1)) is not None:
        batches = read(work)
        feed.done(0, work, len(batches))
        assert batches[0] in rest
        rest.remove(batches[0])
    assert not rest


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda item: 1, "make_dataset returned int for 'a'"),
        (lambda item: numbered((0, 4)).repeat(), "repeats without an end"),
    ],
)
def test_what_make_dataset_may_not_return(connect, make, message):
    connect(workers=2)
    with pytest.raises(tfps.DataError, match=message):
        feed_of(tfps.data.Splits(["a"], make), 2, None, 1)


def test_splits_of_different_forms_are_refused(connect):
    connect(workers=2)

    def make(name):
        return numbered((0, 4)) if name == "a" else tf.data.Dataset.from_tensors([1.0]).batch(1)

    feed = feed_of(tfps.data.Splits("ab", make, shuffle=False), 2, None, 1)
    feed.begin_epoch()
    feed.take(0)
    with pytest.raises(tfps.DataError, match=r"for 'b', and of .* all splits must have the same"):
        read(feed.take(1))


def test_a_position_of_other_splits_is_refused(connect):
    connect(workers=2)
    position = feed_of(splits(), 2, None, 1).position()
    with pytest.raises(tfps.DataError, match="there are 1 splits"):
        feed_of(tfps.data.Splits([(0, 4)], numbered), 2, None, 1).seek(position)


def test_training_on_splits_is_training_on_their_batches(connect):
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 8)).astype("float32")
    y = x[:, :1] * x[:, 1:2]

    def batches(bounds):
        begin, end = bounds
        return tf.data.Dataset.from_tensor_slices((x[begin:end], y[begin:end])).batch(2)

    reference, model = mlp(), mlp()
    for one in (reference, model):
        one.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    expected = reference.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0)
    data = splits(batches, shuffle=False)
    trainer = tfps.Trainer(model, connect(1))
    history = trainer.fit(data, epochs=2, validation_data=data, verbose=0)
    for name in ("loss", "mae"):
        np.testing.assert_allclose(history.history[name], expected.history[name], rtol=1e-4)
    np.testing.assert_allclose(
        trainer.evaluate(data, verbose=0), reference.evaluate(x, y, verbose=0), rtol=1e-3
    )
    with pytest.raises(tfps.DataError, match="predict was given a dataset_fn or Splits"):
        trainer.predict(data)
    with pytest.raises(tfps.DataError, match="y was given together with Splits"):
        trainer.fit(data, y)
