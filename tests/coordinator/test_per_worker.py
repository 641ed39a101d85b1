"""Per-worker values."""

import collections
import threading

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute.coordinator import coordinator_context

import tfps
from tests.coordinator.conftest import BOTH, UNRAISABLE, broken, calling, eventually, put
from tfps.cluster.members import Task

pytestmark = UNRAISABLE
W0 = Task("worker", 0)


@BOTH
def test_per_worker_values_that_are_none(make, kind):
    coordinator = make(kind)
    nothing = coordinator._create_per_worker_resources(tf.function(lambda: None))
    assert [value.get() for value in nothing._values] == [None, None]
    some = coordinator._create_per_worker_resources(tf.function(lambda: (tf.constant(2), None)))

    @tf.function
    def first(pair):
        assert pair[1] is None
        return 2 * pair[0]

    for _ in range(3):  # The inputs of the graph are learned from the first call.
        assert coordinator.schedule(first, args=(some,)).fetch() == 4
    if kind == "tfps":  # TensorFlow's cannot copy a None among tensors.
        assert some._values[0].fetch() == (2, None)
    coordinator.join()


@BOTH
@pytest.mark.parametrize("source", ["function", "dataset", "distributed function", "distributed"])
def test_per_worker_dataset(make, kind, source):
    coordinator = make(kind)
    strategy = coordinator.strategy

    def dataset():
        return tf.data.Dataset.range(100).map(lambda x: x + 7)

    made = coordinator.create_per_worker_dataset(
        {
            "function": lambda: dataset,
            "dataset": dataset,
            "distributed function": lambda: (
                lambda: strategy.distribute_datasets_from_function(lambda context: dataset())
            ),
            "distributed": lambda: strategy.experimental_distribute_dataset(dataset()),
        }[source]()
    )
    traced = []

    @tf.function
    def step(batch):
        traced.append(1)
        return strategy.run(lambda x: 2 * x, args=(next(batch["nested"][0]),))

    for _ in range(2):  # Iterators of one dataset share a trace.
        iterator = iter(made)
        arguments = [{"nested": [iterator], "other": 1}]
        values = coordinator.fetch([coordinator.schedule(step, arguments) for _ in range(12)])
        # Each worker has the whole dataset, in order.
        counts = collections.Counter(values)
        assert sum(counts.values()) == 12
        assert max(counts.values()) <= 2
        assert min(values) == 14
    assert len(traced) == 1


@BOTH
def test_the_end_of_a_dataset_is_out_of_range(make, kind):
    coordinator = make(kind, workers=1)
    iterator = iter(coordinator.create_per_worker_dataset(lambda: tf.data.Dataset.range(3)))
    f = tf.function(lambda it: next(it))
    for _ in range(5):
        coordinator.schedule(f, args=(iterator,))
    with pytest.raises(tf.errors.OutOfRangeError):
        coordinator.join()


@BOTH
def test_resources_of_the_strategys_scope_are_those_of_the_worker(make, kind):
    coordinator = make(kind)
    with coordinator.strategy.scope():
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64)), -1
        )

    @tf.function
    def f(key):
        index = tf.distribute.coordinator.experimental_get_current_worker_index()
        return table.lookup(key), index

    keys = [tf.constant(k) for k in ("a", "b", "c", "a", "b", "c")]
    values = coordinator.fetch([coordinator.schedule(f, args=(k,)) for k in keys])
    assert [v for v, _ in values] == [1, 2, -1, 1, 2, -1]
    assert {index for _, index in values} <= {0, 1}


@BOTH
def test_a_dataset_that_cannot_be_made_fails_what_uses_it(make, kind):
    coordinator = make(kind, workers=1)

    def dataset():
        tf.debugging.assert_equal(tf.random.uniform([]), -1.0, "no such data")
        return tf.data.Dataset.range(3)

    iterator = iter(coordinator.create_per_worker_dataset(dataset))
    coordinator.schedule(tf.function(lambda it: next(it)), args=(iterator,))
    with pytest.raises(Exception, match="no such data"):
        coordinator.join()


@BOTH
def test_a_variable_of_each_worker(make, kind):
    coordinator = make(kind, workers=2)
    with coordinator.strategy.scope():
        variable = tf.Variable(1.0, per_worker_variable=True)
    index = tf.distribute.coordinator.experimental_get_current_worker_index

    @tf.function
    def add():
        variable.assign_add(2.0)
        return index() + 0

    workers = coordinator.fetch([coordinator.schedule(add) for _ in range(6)])
    counts = collections.Counter(map(int, workers))
    coordinator.join()
    assert variable.read_all() == [1 + 2 * counts[worker] for worker in (0, 1)]


def test_values_are_made_anew_while_nothing_is_scheduled(make, by_hand):
    coordinator = make(workers=2)
    with coordinator.strategy.scope():
        variable = tf.Variable(1.0, per_worker_variable=True)

    @tf.function
    def add():
        variable.assign_add(2.0)

    for _ in range(20):
        coordinator.schedule(add)
    coordinator.join()
    known, kept = coordinator._queue._members, variable.read_all()[1]
    known.lose(W0, "is gone")
    eventually(lambda: coordinator._queue._recovery._thread is not None)
    known.admit(W0, None)
    eventually(lambda: variable.read_all() == [1.0, kept])


def test_who_waits_for_a_value_of_a_lost_worker_is_told(make, by_hand):
    coordinator = make(workers=2)
    known = coordinator._queue._members
    known.lose(W0, "is gone")
    made = coordinator._create_per_worker_resources(tf.function(lambda: tf.constant(2)))
    assert made._values[1].get() == 2
    with pytest.raises(tfps.TaskLost, match=r"worker 0 \(\S+: is gone\); it is made"):
        made._values[0].get()
    known.admit(W0, None)
    coordinator._queue._wake()
    assert made._values[0].get() == 2


def test_who_waits_for_a_value_is_told_when_the_coordinator_stops(make, by_hand):
    coordinator = make(workers=2)
    queue = coordinator._queue
    queue._members.lose(W0, "is gone")
    function = tf.function(lambda: tf.constant(2))
    made = coordinator._create_per_worker_resources(function)
    result = put(coordinator, function, worker=0)
    queue.stop()
    with pytest.raises(tf.errors.CancelledError, match="has stopped"):
        made._values[0].get()
    with pytest.raises(tf.errors.CancelledError, match="has stopped"):
        result.get()
    coordinator.join()
    with pytest.raises(tf.errors.CancelledError, match="has stopped"):
        coordinator._create_per_worker_resources(function)._values[0].get()
    queue._members.admit(W0, None)


def test_tensorflow_waits_for_a_value_that_is_made_again(make, monkeypatch):
    """The value is renewed between the two questions that TensorFlow asks."""
    coordinator = make(workers=1)
    queue = coordinator._queue
    made = coordinator._create_per_worker_resources(tf.function(lambda: tf.constant(2)))
    value = made._values[0]
    ask = value._get_error

    def asked():
        error = ask()
        with queue._lock:
            value.renew()
        threading.Timer(0.1, queue.put_on, (0, value.closure)).start()
        return error

    monkeypatch.setattr(value, "_get_error", asked)
    assert coordinator_context.maybe_get_remote_value(value) == 2


def test_a_value_is_made_once_in_a_life(make, by_hand, double):
    """A lane makes the value in the worker's next life before another lane's call has failed."""
    strategy = make(workers=1).strategy
    coordinator = tfps.ClusterCoordinator(strategy, in_flight=2)
    queue, ran, again = coordinator._queue, [], threading.Event()
    known = queue._members

    def function():
        ran.append(1)
        if len(ran) > 1:
            again.set()
            return np.bool_(True)
        known.lose(W0, "is gone")
        known.admit(W0, None)
        queue._wake()
        assert again.wait(10)
        raise broken()

    queue.start_lanes()
    made = coordinator._create_per_worker_resources(calling(function))
    assert made._values[0].get()
    eventually(lambda: all(lane.begun is None for lane in queue._lanes))
    assert coordinator.fetch([coordinator.schedule(double, args=(1,)) for _ in range(8)]) == [2] * 8
    coordinator.join()
    assert len(ran) == 2
