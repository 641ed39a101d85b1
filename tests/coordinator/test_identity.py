"""One coordinator for a strategy, and its end."""

import gc
import threading

import pytest
import tensorflow as tf

import tfps
from tests.coordinator.conftest import STOCK, UNRAISABLE

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
    strategy = tf.distribute.ParameterServerStrategy(connect(2).cluster.resolver())
    coordinator = tfps.ClusterCoordinator(strategy)
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    taken = tf.distribute.ParameterServerStrategy(connect(2).cluster.resolver())
    STOCK(taken)
    with pytest.raises(tfps.ConfigError, match="already"):
        tfps.ClusterCoordinator(taken)


def test_what_it_refuses(connect):
    with pytest.raises(tfps.ConfigError, match="_DefaultDistributionStrategy"):
        tfps.ClusterCoordinator(tf.distribute.get_strategy())
    with pytest.raises(tfps.ConfigError, match=r"in_flight=9; .* 1 to 4"):
        tfps.ClusterCoordinator(connect(), in_flight=9)


def test_its_threads_end_with_it(connect):
    def lanes():
        return {t for t in threading.enumerate() if t.name.startswith("tfps-worker-0.")}

    gc.collect()
    before = lanes()
    coordinator = tfps.ClusterCoordinator(connect(workers=1))
    assert not lanes() - before  # None before there is work; those of others may end meanwhile.
    f = tf.function(lambda: None)
    coordinator.schedule(f).fetch()
    (mine,) = lanes() - before
    del coordinator, f
    gc.collect()
    mine.join(10)
    assert not mine.is_alive()
