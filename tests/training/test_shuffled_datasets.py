"""A dataset that shuffles has the same order in a pass whenever that pass is read again."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfps import _tf_shuffles
from tfps.training.feeds import FeedPosition
from tfps.training.input import feed_of

BATCHES = 8


@pytest.fixture(autouse=True)
def _connected(connect):
    connect(workers=2)


def numbers(end=BATCHES):
    return tf.data.Dataset.range(end)


def counted():
    return tf.data.Dataset.from_generator(
        lambda: iter(range(BATCHES)), output_signature=tf.TensorSpec([], tf.int64)
    )


def twice_the_same():
    shuffled = numbers(4).shuffle(4, seed=2)
    return tf.data.Dataset.zip(shuffled, shuffled).flat_map(
        lambda a, b: tf.data.Dataset.from_tensor_slices([a, 10 + b])
    )


# Whose order is the one that the dataset has outside, too.
SEEDED = {
    "a seed": lambda: numbers().shuffle(8, seed=5),
    "threads": lambda: numbers().shuffle(8, seed=5).map(
        lambda x: x + 1, num_parallel_calls=tf.data.AUTOTUNE
    ),
    "one order": lambda: numbers().shuffle(8, seed=5, reshuffle_each_iteration=False),
    "a cache of an order": lambda: numbers().shuffle(8, seed=5).cache(),
    "a cache that is shuffled": lambda: numbers().cache().shuffle(8, seed=5),
    "a generator": lambda: counted().shuffle(8, seed=5),
    "random numbers": lambda: tf.data.Dataset.random(seed=3, rerandomize_each_iteration=True).take(
        BATCHES
    ),
    "one shuffle twice": twice_the_same,
}  # fmt: skip
DATASETS = SEEDED | {
    "seeds": lambda: numbers().shuffle(8, seed=5).shuffle(3, seed=2).prefetch(2),
    "parts": lambda: numbers(4).shuffle(4, seed=5).concatenate(numbers(4).shuffle(4, seed=3)),
    "no seed": lambda: numbers().shuffle(8),
    "a part of a pass more than once": lambda: numbers(4).shuffle(4, seed=5).repeat(2),
    "no seed of a choice": lambda: tf.data.Dataset.sample_from_datasets(
        [numbers(4), numbers(4).map(lambda x: x + 10)], stop_on_empty_dataset=False
    ),
}


def feed(dataset, order=7):
    return feed_of(dataset.batch(1), 2, None, 1, order=order)


def rest(feed):
    """The numbers that are left of an epoch."""
    feed.begin_epoch()
    found = []
    while (work := feed.take(0)) is not None:
        found.append(int(work.source[0]))
        feed.done(0, work, 1)
    feed.end_epoch()
    return found


@pytest.fixture(autouse=True)
def _no_global_seed():
    tf.random.set_seed(None)
    yield
    tf.random.set_seed(0)


@pytest.mark.parametrize("name", DATASETS)
def test_a_pass_is_the_same_when_it_is_read_again(name):
    first = feed(DATASETS[name]())
    whole = [rest(first) for _ in range(3)]
    assert [len(order) for order in whole] == [BATCHES] * 3
    if "one order" not in name and "cache of" not in name:
        assert len(set(map(tuple, whole))) > 1
    turns = first.position().passes[0] // 2  # Keras has two iterators for a pass.
    again = DATASETS[name]()
    list(again)  # What the program does with it before `fit` makes no difference.
    for one in (first, feed(again)):
        for turn in (1, 0, 2):
            passes = turn * 2 if turns == 3 else turn
            one.seek(FeedPosition((4,), passes=(passes,)))
            assert rest(one) == whole[turn][4:], turn
        assert len(rest(one)) == BATCHES


@pytest.mark.parametrize("name", SEEDED)
def test_the_orders_of_passes_are_those_that_the_dataset_has_outside(name):
    outside, inside = (feed(SEEDED[name](), order) for order in (None, 7))
    assert [rest(inside) for _ in range(3)] == [rest(outside) for _ in range(3)]


def test_the_passes_of_the_next_fit_go_on():
    shuffled = numbers().shuffle(8, seed=5)
    first, whole = feed(shuffled), feed(numbers().shuffle(8, seed=5))
    expected = [rest(whole) for _ in range(4)]
    assert [rest(first), rest(first)] == expected[:2]
    second = feed(shuffled.take(-1))  # It may be another dataset, with the same shuffle.
    assert [rest(second), rest(second)] == expected[2:]


def test_a_dataset_whose_order_is_left_to_chance_is_told_of_at_the_start():
    def free(x):
        return x.map(lambda i: i, num_parallel_calls=2, deterministic=False)

    options = tf.data.Options()
    options.deterministic = False
    for x in (free(numbers()), numbers().flat_map(lambda i: free(numbers(2)))):
        with pytest.warns(UserWarning, match="it has deterministic=False"):
            feed(x).require_repeatable()
    with pytest.warns(UserWarning, match="it has deterministic=False"):
        feed(numbers().with_options(options)).require_repeatable()


def test_orders_that_nothing_determines_are_told_of_at_the_start(monkeypatch):
    inner = numbers(2).interleave(lambda i: numbers(4).shuffle(4))
    with pytest.warns(UserWarning, match="a function of it shuffles without a seed"):
        feed(inner).require_repeatable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(numbers().shuffle(8)).require_repeatable()
        feed(numbers(2).interleave(lambda i: numbers(4).shuffle(4, seed=1), 2)).require_repeatable()
    monkeypatch.setattr(_tf_shuffles, "_MOST_BYTES", 8)
    large = tf.data.Dataset.from_tensor_slices(np.arange(8.0))
    with pytest.warns(UserWarning, match="it holds more than 0 MiB"):
        feed(large.shuffle(8, seed=1)).require_repeatable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(large).require_repeatable()
    assert sorted(rest(feed(large.shuffle(8, seed=1)))) == list(range(8))


def test_a_dataset_with_a_table_and_a_variable_is_copied():
    keys = tf.constant(list(range(BATCHES)), tf.int64)
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys, keys + 100), default_value=-1
    )
    added = tf.Variable(1000, dtype=tf.int64)
    read = numbers().shuffle(8, seed=5).map(lambda x: table.lookup(x) + added)
    assert sorted(rest(feed(read))) == [1100 + i for i in range(BATCHES)]
