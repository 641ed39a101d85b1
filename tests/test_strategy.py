import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tfps import _tf


def test_it_is_tensorflows(connect):
    strategy = connect(workers=2)
    assert isinstance(strategy, tf.distribute.ParameterServerStrategy)


def test_scope_keeps_keras_here_and_sends_the_rest_to_the_servers(connect):
    strategy = connect(
        partitioner=tf.distribute.experimental.partitioners.FixedShardsPartitioner(2)
    )
    with strategy.scope():
        model = mlp()
        model.compile(keras.optimizers.Adam(), "mse")
        variable = tf.Variable(tf.zeros([4, 2]))
    assert {v.value.device.split("/")[1] for v in model.variables} == {_tf.chief_device()[1:]}
    assert [v.device.split("/")[1] for v in variable.variables] == ["job:ps", "job:ps"]
    trainer = tfps.Trainer(model, strategy)
    x, y = regression(64)
    with strategy.scope():
        trainer.fit(x, y, verbose=0)
    # The model is plain Keras's afterwards.
    assert np.isfinite(model.evaluate(x, y, verbose=0))
    model.fit(x, y, verbose=0)


def test_tensorflows_own_coordinator_runs_on_it(connect):
    strategy = connect(workers=2)
    with strategy.scope():
        total = tf.Variable(0.0)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)

    @tf.function
    def add():
        total.assign_add(1.0)

    for _ in range(10):
        coordinator.schedule(add)
    coordinator.join()
    assert total.numpy() == 10


def test_a_model_made_before_the_connection_is_trained(connect):
    x, y = regression(64)
    connect(workers=1)
    model = mlp()
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(x, y, verbose=0)
    before = model.get_weights()
    strategy = connect(workers=2)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    tfps.Trainer(model, strategy).fit(x, y, verbose=0)
    assert not np.array_equal(model.get_weights()[0], before[0])
    assert int(model.optimizer.iterations) == 4
    model.fit(x, y, verbose=0)


def test_a_variable_that_could_not_be_made_is_left_alone(connect):
    """The error of one keeps it alive, half made, while the strategy carries variables over."""

    def fails(shape, dtype):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as held:
        keras.Variable(fails, shape=(2,))
    connect(workers=2)
    assert held.traceback
