"""Datasets that workers read are made again the same, or are refused."""

import random
import warnings

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp
from tfps import _tf_data
from tfps.training.feeds import FeedPosition
from tfps.training.input import feed_of
from tfps.training.worker_dataset import RemoteDataset, input_device


@pytest.fixture(autouse=True)
def _connected(connect):
    connect(workers=2)


def drawing(context):
    """Draws from all global seeds."""
    order = random.sample(range(20), 10) + np.random.permutation(np.arange(20, 30)).tolist()
    return tf.data.Dataset.from_tensor_slices(order).shuffle(20).batch(1)


def read(feed, worker, count):
    """The next batches of a worker's work, each a number."""
    found = []
    while len(found) < count:
        work = feed.take(worker)
        element = work.source.get_next_as_optional()
        feed.done(worker, work, int(element.has_value()))
        if element.has_value():
            found.append(int(element.get_value()[0]))
    return found


def numbers(begin=0):
    return tf.data.Dataset.range(begin, begin + 8)


PIPELINES = {
    "shuffle": lambda: numbers().shuffle(8),
    "repeat": lambda: numbers().shuffle(8).repeat(2),
    "batch, repeat": lambda: numbers().shuffle(8).batch(1).unbatch().repeat(2),
    "concatenate": lambda: numbers().shuffle(8).concatenate(numbers(8).shuffle(8)),
    "cache": lambda: numbers().shuffle(8).cache(),
    "repeat, take": lambda: numbers().shuffle(8).repeat().take(20),
    "repeat, shuffle": lambda: numbers().repeat(2).shuffle(16),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pass_can_be_read_again_from_any_batch(name):
    """Whatever its iterators draw from generators of seeds, and however often."""
    seeds = _tf_data.Seeds()

    def make():
        with seeds.of(0):
            return PIPELINES[name]()

    def batches(remote, turn, begin):
        iterator, found = remote.iterator(turn, begin), []
        with input_device(0):
            while (element := iterator.get_next_as_optional()).has_value():
                found.append(int(element.get_value()))
        return found

    unbroken = RemoteDataset(make, 0)
    whole = [batches(unbroken, turn, 0) for turn in range(3)]
    if name != "cache":
        assert len({tuple(order) for order in whole}) == 3
    for turn in (2, 0, 1):
        assert batches(RemoteDataset(make, 0), turn, 5) == whole[turn][5:]
        assert batches(unbroken, turn, 5) == whole[turn][5:]


@pytest.mark.parametrize("fits", [1, 2])
def test_another_process_has_the_order_that_is_kept(fits):
    """The seed of a `fit` is in its snapshots; what a process draws by itself is in none."""
    found = []
    for seed in (1, 2):  # Of two processes.
        random.seed(seed)
        np.random.seed(seed)
        feed = feed_of(drawing, 2, None, 1, order=7 + fits)
        feed.begin_epoch()
        found.append(read(feed, 0, 20))
    assert found[0] == found[1]


@pytest.fixture(params=[None, 3])
def _global_seed(request):
    tf.random.set_seed(request.param)
    yield
    tf.random.set_seed(0)


@pytest.mark.usefixtures("_global_seed")
@pytest.mark.parametrize("turn", [0, 2])
def test_another_worker_goes_on_in_the_same_order(turn):
    def only_for_the_first(context):
        return drawing(context).take(-1 if context.worker_index == 0 else 0)

    feed = feed_of(only_for_the_first, 2, None, 1)
    whole = []
    for _ in range(turn + 1):
        feed.begin_epoch()
        whole.append(read(feed, 0, 20))
        feed.end_epoch()
    assert len({tuple(order) for order in whole}) == turn + 1
    feed.seek(FeedPosition((0, 0), passes=(turn, turn)))  # The last epoch once more.
    feed.begin_epoch()
    assert read(feed, 0, 7) == whole[turn][:7]
    before = random.getstate(), np.random.get_state()[1].tolist()
    feed.left(0)
    assert read(feed, 1, 6) == whole[turn][7:13]
    feed.back(0)
    assert read(feed, 0, 7) == whole[turn][13:]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_each_worker_has_an_order_of_its_own():
    feed = feed_of(drawing, 2, None, 1)
    feed.begin_epoch()
    assert read(feed, 0, 20) != read(feed, 1, 20)


@pytest.mark.usefixtures("_global_seed")
def test_a_seed_has_the_meaning_that_it_has_outside():
    def make():
        return tf.data.Dataset.range(20).shuffle(20, seed=5)

    outside = [int(i) for i in make()]
    with _tf_data.seeded(1):
        assert [int(i) for i in make()] == outside
    with _tf_data.Seeds().of(0):
        assert [int(i) for i in make()] == outside


def test_a_seeded_context_draws_what_follows_from_its_numbers():
    def draw(*numbers):
        with _tf_data.seeded(*numbers):
            shuffled = tf.data.Dataset.range(20).shuffle(20)
            return random.random(), np.random.random(), [int(i) for i in shuffled]

    assert draw(1, 2) == draw(1, 2)
    assert all(a != b for a, b in zip(draw(1, 2), draw(1, 3), strict=True))


def test_repeatable_input_is_accepted():
    feed_of(drawing, 2, None, 1).require_repeatable()
    feed_of(np.arange(4), 2, None, 1).require_repeatable()
    feed_of(tfps.data.Splits([0, 1], drawing), 2, None, 1).require_repeatable()


def unrepeatable(_):
    return tf.data.Dataset.from_tensor_slices(np.random.default_rng().normal(size=4)).batch(1)


def test_input_that_does_not_repeat_itself_is_refused():
    with pytest.raises(tfps.DataError, match="dataset_fn, called for worker 0, makes a dataset"):
        feed_of(unrepeatable, 2, None, 1).require_repeatable()
    with pytest.raises(tfps.DataError, match="make_dataset, called for 7, makes a dataset"):
        feed_of(tfps.data.Splits([7], unrepeatable), 2, None, 1).require_repeatable()


def batches():
    while True:
        yield np.ones([2, 8], np.float32), np.ones([2, 1], np.float32)


def test_a_generator_with_snapshots_is_asked_about_at_the_start(connect, tmp_path):
    def fit(**arguments):
        model = mlp()
        model.compile("sgd", "mse")
        tfps.Trainer(model, connect(2), **arguments).fit(batches(), steps_per_epoch=3, verbose=0)

    fit()
    with pytest.raises(tfps.DataError, match='data="at_least_once"'):
        fit(snapshots=tmp_path)
    fit(snapshots=tmp_path, data="at_least_once")
    with pytest.raises(tfps.ConfigError, match="at_least_once"):
        fit(data="twice")


def interleaved(**cycle):
    """A file for each of two workers, read as most guides do."""

    def make(context):
        del context
        return numbers().interleave(
            lambda i: tf.data.Dataset.from_tensors(i), num_parallel_calls=tf.data.AUTOTUNE, **cycle
        )

    return make


@pytest.mark.parametrize("of_chief", [True, False])
def test_what_follows_the_cores_of_a_machine_is_warned_of(of_chief):
    def feed(**cycle):
        make = interleaved(**cycle)
        return feed_of(make(None) if of_chief else make, 2, None, 1, order=1)

    with pytest.warns(UserWarning, match="interleave has no cycle_length"):
        feed().require_repeatable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(cycle_length=2).require_repeatable()


def test_a_cache_in_a_file_is_warned_of(tmp_path):
    feed = feed_of(lambda context: numbers().cache(str(tmp_path / "kept")).batch(1), 2, None, 1)
    with pytest.warns(UserWarning, match=r"kept_0\.lockfile"):
        feed.require_repeatable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed_of(lambda context: numbers().cache().batch(1), 2, None, 1).require_repeatable()


@pytest.mark.parametrize("changes", [True, False])
@pytest.mark.parametrize("shuffles", [True, False])
def test_another_order_after_a_restart_is_warned_of(changes, shuffles):
    """As that of `image_dataset_from_directory` without a seed."""

    def feed(order):
        one = tf.data.Dataset.from_tensor_slices(order)
        return feed_of((one.shuffle(4, seed=7) if shuffles else one).batch(2), 2, None, 1, order=5)

    before = feed(list(range(10)))
    before.begin_epoch()
    for worker in (0, 1):
        before.done(worker, before.take(worker), 1)
    after = feed(list(range(9, -1, -1)) if changes else list(range(10)))
    after.seek(before.position())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        after.begin_epoch()
        numbers = [after.take(0) for _ in range(3)]
    assert len(numbers) == 3
    assert any("another order" in str(one.message) for one in said) == changes


def test_random_numbers_in_a_map_are_no_other_data():
    def feed():
        one = tf.data.Dataset.range(10).map(
            lambda i: tf.cast(i, tf.float32) + tf.random.uniform([])
        )
        return feed_of(one.batch(2), 2, None, 1, order=5)

    before, after = feed(), feed()
    before.begin_epoch()
    before.done(0, before.take(0), 1)
    after.seek(before.position())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after.begin_epoch()
