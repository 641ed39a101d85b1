"""What programs find behind the underscore of TensorFlow's coordinator."""

import gc

import pytest
import tensorflow as tf
from tensorflow.python.distribute.coordinator import cluster_coordinator, metric_utils

import tfps
from tests.coordinator.conftest import BOTH, UNRAISABLE, put

pytestmark = UNRAISABLE


@BOTH
def test_a_closure_for_one_worker(make, kind):
    coordinator = make(kind, workers=2)
    index = tf.distribute.coordinator.experimental_get_current_worker_index
    where = tf.function(lambda: index() + 0)
    results = [put(coordinator, where, worker=w) for w in (1, 0, 1, 1)]
    coordinator.join()
    assert coordinator.done()
    assert [r.fetch() for r in results] == [1, 0, 1, 1]
    assert put(coordinator, where).fetch() in (0, 1)
    coordinator.join()


@BOTH
def test_the_result_of_a_closure_is_on_the_chief(make, kind):
    coordinator = make(kind, workers=1)
    metric_utils.monitor_int("queued_closures", 0)  # Makes the metrics if there are none yet.
    before = metric_utils.get_metric_summary("remote_value_fetch")["num"]
    result = put(coordinator, tf.function(lambda: 2 * tf.constant(2)))
    coordinator.join()
    assert metric_utils.get_metric_summary("remote_value_fetch")["num"] == before + 1
    assert result._has_fetched_to_local
    assert "/job:chief" in result._fetched_tensors.device


@BOTH
def test_an_iterator_stays_on_its_worker(make, kind):
    coordinator = make(kind, workers=1)
    closure = cluster_coordinator.ResourceClosure(
        lambda: iter(tf.data.Dataset.range(3)),
        coordinator._cluster.closure_queue._cancellation_mgr,
    )
    result = closure.build_output_remote_value()
    queue = coordinator._cluster.closure_queue
    queue._inflight_closure_count += kind == "tfps"
    queue.put(closure, tag=0)
    assert next(result._get_values()) == 0
    coordinator.join()


def test_the_error_of_a_closure(make, positive):
    coordinator = make(workers=1)
    result = put(coordinator, positive, args=(tf.constant(-1),))
    with pytest.raises(tfps.WorkerError, match="not positive"):
        coordinator.join()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        result.fetch()
    assert put(coordinator, positive, args=(tf.constant(1),)).fetch() == 1
    coordinator.join()


@BOTH
def test_workers_know_their_resources(make, kind):
    coordinator = make(kind, workers=2)
    workers = coordinator._cluster.workers
    assert [w.worker_index for w in workers] == [0, 1]
    iterator = iter(coordinator.create_per_worker_dataset(lambda: tf.data.Dataset.range(3)))
    first = tf.function(lambda it: next(it))
    assert coordinator.schedule(first, args=(iterator,)).fetch() == 0
    for w in workers:
        assert [r() for r in w._resource_remote_value_refs if r() is not None]
    coordinator.join()
    del iterator
    gc.collect()
    for w in workers:
        assert not [r() for r in w._resource_remote_value_refs if r() is not None]


@BOTH
def test_the_error_of_an_input_is_tensorflows(make, kind, positive):
    coordinator = make(kind, workers=1)
    bad = coordinator._create_per_worker_resources(positive, args=(tf.constant(-1),))
    coordinator._create_per_worker_resources(positive, args=(tf.constant(-1),))  # Never used.
    value = coordinator.schedule(tf.function(lambda x: x + 1), args=(bad,))
    kinds = [cluster_coordinator.ClosureInputError]
    if kind == "tfps":
        kinds += [tfps.WorkerError, tf.errors.InvalidArgumentError]
    for k in kinds:
        with pytest.raises(k, match=r"(?s)Input has an error, .*error message is .*not positive"):
            value.get()
    with pytest.raises(cluster_coordinator.ClosureInputError) as caught:
        coordinator.join()
    assert isinstance(caught.value.original_exception, tf.errors.InvalidArgumentError)
    coordinator.join()


@BOTH
def test_a_dataset_partly_made_on_the_chief(make, kind):
    """Its first part cannot be copied to a worker."""
    coordinator = make(kind, workers=1)
    made = tf.data.Dataset.range(10)
    rest = tf.function(lambda: made.shuffle(9))
    iterator = iter(coordinator.create_per_worker_dataset(rest))
    coordinator.schedule(tf.function(lambda it: next(it)), args=(iterator,))
    with pytest.raises(
        cluster_coordinator.ClosureInputError, match="error message is Failed copying input tensor"
    ):
        coordinator.join()


@BOTH
def test_tensorflows_metrics_count(make, kind):
    coordinator = make(kind, workers=1)
    names = ("function_tracing", "closure_execution", "remote_value_fetch")
    metric_utils.monitor_int("queued_closures", 0)  # Makes the metrics if there are none yet.

    def counts():
        return {name: metric_utils.get_metric_summary(name)["num"] for name in names}

    before = counts()
    twice = tf.function(lambda x: 2 * x)
    values = [coordinator.schedule(twice, args=(tf.constant(i),)) for i in range(3)]
    coordinator.join()
    # As many results as functions, however many of them are looked at.
    assert values[2].fetch() == 4
    assert [counts()[name] - before[name] for name in names] == [1, 3, 3]
    assert metric_utils.get_metric_summary("queued_closures") == 0
    assert metric_utils.get_metric_summary("inflight_closures") == 0
