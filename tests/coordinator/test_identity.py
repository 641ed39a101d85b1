"""One coordinator for a strategy, and its end."""

import gc
import threading
import time
import weakref

import pytest
import tensorflow as tf

import tfps
from tests.conftest import tensorflows
from tests.coordinator.conftest import STOCK, UNRAISABLE
from tfps.coordinator import remote_value

pytestmark = UNRAISABLE


def test_a_strategy_has_one_and_tensorflow_finds_it(connect, double):
    strategy = connect()
    with strategy.scope():
        pass
    coordinator = tfps.ClusterCoordinator(strategy)
    assert type(coordinator) is tfps.ClusterCoordinator
    assert isinstance(coordinator, STOCK)
    assert STOCK(strategy) is coordinator
    assert tfps.ClusterCoordinator(strategy, in_flight=2) is coordinator
    assert STOCK(strategy).in_flight == 2
    assert coordinator.strategy is strategy
    value = coordinator.schedule(double, args=(1,))
    assert isinstance(value, tf.distribute.coordinator.RemoteValue)
    assert isinstance(value, tfps.RemoteValue)


def test_on_tensorflows_strategy(connect, double):
    strategy = tensorflows(connect(2))
    coordinator = tfps.ClusterCoordinator(strategy)
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    taken = tensorflows(connect(2))
    STOCK(taken)
    with pytest.raises(tfps.ConfigError, match="already"):
        tfps.ClusterCoordinator(taken)


def test_what_it_refuses(connect):
    with pytest.raises(tfps.ConfigError, match="_DefaultDistributionStrategy"):
        tfps.ClusterCoordinator(tf.distribute.get_strategy())
    with pytest.raises(tfps.ConfigError, match=r"in_flight=9; .* 1 to 4"):
        tfps.ClusterCoordinator(connect(), in_flight=9)


@pytest.mark.parametrize("data", ["none", "dataset", "distributed"])
def test_its_threads_end_with_it(connect, data):
    def lanes():
        names = ("WorkerClosureProcessingLoop-0.", "WorkerPreemptionHandler")
        return {t for t in threading.enumerate() if t.name.startswith(names)}

    gc.collect()
    before = lanes()
    strategy = connect(workers=1)
    with strategy.scope():
        assert not lanes() - before  # Those of others may end meanwhile.
    coordinator = tfps.ClusterCoordinator(strategy)
    mine = lanes() - before
    assert len(mine) == 2
    del strategy
    f = tf.function(lambda it: None)
    iterator = None
    if data != "none":
        dataset = tf.data.Dataset.range(3)
        if data == "distributed":
            dataset = coordinator.strategy.experimental_distribute_dataset(dataset)
        iterator = iter(coordinator.create_per_worker_dataset(dataset))
        del dataset
    coordinator.schedule(f, args=(iterator,)).fetch()
    assert lanes() - before == mine
    # It may outlive the coordinator, unless its trace, which is TensorFlow's, knows the strategy.
    f = None if data == "distributed" else f
    del coordinator, iterator
    deadline = time.monotonic() + (1 if data == "none" else 10)
    gc.collect()
    while any(t.is_alive() for t in mine) and time.monotonic() < deadline:
        time.sleep(0.05)
        if data != "none":
            gc.collect()
    assert not [t.name for t in mine if t.is_alive()]


def test_it_may_be_collected_while_its_own_lock_is_held(connect, gate, monkeypatch):
    coordinator = tfps.ClusterCoordinator(connect(workers=1))
    value = coordinator.schedule(gate.function())
    assert gate.entered.acquire(timeout=10)
    alive = weakref.ref(coordinator)
    del coordinator

    def collecting():
        monkeypatch.undo()
        deadline = time.monotonic() + 10
        while alive() is not None and time.monotonic() < deadline:
            gc.collect()  # It does nothing while another thread collects.
        threading.Timer(0.1, gate.open).start()
        return threading.Event()

    monkeypatch.setattr(remote_value.threading, "Event", collecting)
    with pytest.raises(tf.errors.CancelledError):
        value.get()  # It was cancelled with the coordinator.
