import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tfps import _tf
from tfps.cluster import sockets


def test_it_is_tensorflows(connect):
    strategy = connect(workers=2)
    assert isinstance(strategy, tf.distribute.ParameterServerStrategy)


@pytest.mark.parametrize("given", ["0.5", "soon"])
def test_the_environment_says_how_long_servers_are_waited_for(monkeypatch, given):
    chief, worker, ps = (f"127.0.0.1:{port}" for port in sockets.free_ports(3))
    cluster = tfps.Cluster({"chief": [chief], "worker": [worker], "ps": [ps]})
    monkeypatch.setenv("TFPS_STARTUP_TIMEOUT", given)
    error = tfps.StartupTimeout if given == "0.5" else tfps.ClusterConfigError
    with pytest.raises(error, match=r"no answer within 0\.5 s|TFPS_STARTUP_TIMEOUT='soon'"):
        tfps.ParameterServerStrategy(cluster)


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


def resolver_of(cluster, **kwargs):
    """A resolver of TensorFlow's for the servers of a cluster, in which there is no chief."""
    jobs = {job: cluster.spec[job] for job in ("worker", "ps")}
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(jobs), rpc_layer="grpc", **kwargs
    )


def test_it_takes_tensorflows_resolvers(connect, monkeypatch):
    cluster = connect(workers=2).cluster
    config = {"cluster": cluster.spec, "task": {"type": "chief", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    from_env = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    for make in (
        # This process listens at the chief's address already.
        lambda: tfps.ParameterServerStrategy(from_env, tfps.partitioners.FixedShards(2)),
        lambda: tfps.ParameterServerStrategy(cluster_resolver=from_env),
        lambda: tfps.ParameterServerStrategy(resolver_of(cluster)),
    ):
        strategy = make()
        assert (strategy.cluster.num_workers, strategy.cluster.num_ps) == (2, 2)
        with strategy.scope():
            variable = tf.Variable(tf.zeros([4]))
        function = tf.function(lambda v=variable: tf.convert_to_tensor(v) + 1.0)
        value = tfps.ClusterCoordinator(strategy).schedule(function)
        assert value.fetch().tolist() == [1, 1, 1, 1]


def test_what_it_refuses(connect):
    cluster = connect().cluster
    with pytest.raises(TypeError, match=r"cluster=None and cluster_resolver=None; give one"):
        tfps.ParameterServerStrategy()
    with pytest.raises(TypeError, match="give one of them"):
        tfps.ParameterServerStrategy(cluster, cluster_resolver=resolver_of(cluster))
    with pytest.raises(tfps.errors.ClusterConfigError, match="Unrecognized task_type: foobar"):
        tfps.ParameterServerStrategy(resolver_of(cluster, task_type="foobar"))
    spec = tf.train.ClusterSpec({"worker": {1: "h:1"}, "ps": ["h:2"]})
    gap = tf.distribute.cluster_resolver.SimpleClusterResolver(spec)
    with pytest.raises(tfps.errors.ClusterConfigError, match=r"cluster\['worker'\] is \[None"):
        tfps.ParameterServerStrategy(gap)


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_a_model_of_the_scope_names_the_trainer(connect, method):
    with connect().scope():
        model = mlp()
        model.compile("sgd", "mse")
    with pytest.raises(tfps.ConfigError, match=r"tfps\.Trainer\(model, strategy\)"):
        getattr(model, method)(*regression(8))


def test_a_model_of_the_scope_evaluates_and_predicts_on_the_chief(connect):
    model = mlp()
    model.compile("sgd", "mse")
    with connect().scope():
        twin = mlp()
        twin.compile("sgd", "mse")
    x, y = regression(20)
    assert twin.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0))
    np.testing.assert_allclose(twin.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)
    assert twin.test_on_batch(x, y) == pytest.approx(model.test_on_batch(x, y))
    assert twin.predict_on_batch(x).shape == (20, 1)


def test_a_compiled_model_is_loaded_in_the_scope(connect, tmp_path):
    model = mlp()
    model.compile("adam", "mse")
    x, y = regression(32)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    strategy = connect()
    with strategy.scope():
        loaded = keras.models.load_model(tmp_path / "m.keras")
    assert int(loaded.optimizer.iterations.numpy()) == 1
    for one in (model.fit, tfps.Trainer(loaded, strategy).fit):
        one(x, y, shuffle=False, verbose=0)
    assert relative_error(loaded, model) < 1e-5


def test_fit_within_the_scope_puts_its_own_variables_where_they_belong(connect):
    strategy = connect(1, 2)
    x, y = regression(32)
    with strategy.scope():
        for _ in range(2):
            # TensorFlow deals variables of the scope out in turn.
            assert "ps" in tf.Variable(0.0).device
            model = mlp()
            model.compile("adam", "mse")
            tfps.Trainer(model, strategy).fit(x, y, shuffle=False, verbose=0)
    reference = mlp()
    reference.compile("adam", "mse")
    reference.fit(x, y, shuffle=False, verbose=0)
    assert relative_error(model, reference) < 1e-5


def test_the_own_fit_of_a_trainers_model_warns_once(connect):
    model = mlp()
    model.compile("sgd", "mse")
    tfps.Trainer(model, connect())
    x, y = regression(8)
    with pytest.warns(UserWarning, match=r"trains on the chief alone"):
        model.fit(x, y, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x, y, verbose=0)
        model.evaluate(x, y, verbose=0)
