"""Model parallelism: parts of a model on devices of a worker that the model names."""

import keras
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tests.training.devices import ROUNDING, compiled, products, trained
from tfps.cluster.calls import WorkerCalls
from tfps.cluster.devices import own_device
from tfps.cluster.remote_function import RemoteFunction


def test_names_mean_the_workers_own_devices(connect):
    strategy = connect(2, 1, cpu_devices=2)

    def run(x):
        with tf.device("CPU:1"):
            bare = x + 1
        with tf.device(own_device("CPU", 1)):
            return bare, x + 2

    function = RemoteFunction(run, tf.TensorSpec([]))
    calls = WorkerCalls(strategy.cluster)
    found = calls.run_on_each(lambda worker: [t.backing_device for t in function(tf.constant(1.0))])
    calls.close()
    expected = [[f"/job:worker/replica:0/task:{w}/device:CPU:1"] * 2 for w in range(2)]
    assert found == expected


class Staged(keras.Model):
    """Its second half is on another device."""

    def __init__(self, device):
        super().__init__()
        keras.utils.set_random_seed(1)
        self.first = keras.layers.Dense(16, "tanh")
        self.second = keras.layers.Dense(16, "tanh")
        self.head = keras.layers.Dense(1)
        self.device = device

    def call(self, x):
        x = self.first(x)
        with tf.device(self.device):
            return self.head(self.second(x))


@pytest.mark.parametrize(
    "workers, jit_compile",
    [
        (1, True),
        (2, False),
        pytest.param(1, False, marks=pytest.mark.soak),
        pytest.param(2, True, marks=pytest.mark.soak),
    ],
)
def test_model_parallel_by_tf_device(connect, workers, jit_compile):
    x, y = regression(96)
    policy = tfps.Sync() if workers == 2 else tfps.Async()
    models = [Staged("CPU:0"), Staged("/CPU:1")]
    for model in models:
        model(x[:1])
        compiled(model, jit_compile=jit_compile)
        trained(connect, model, None, x, y, workers=workers, consistency=policy)
    assert relative_error(models[1], models[0]) < ROUNDING


def test_stages_compute_where_they_are(connect):
    x, y = regression(96)
    model = Staged("/device:CPU:2")
    model(x[:1])
    trainer = tfps.Trainer(compiled(model, jit_compile=True), connect(1, 2, cpu_devices=3))
    assert products(trainer, x, y) == {"CPU:0": 2, "CPU:2": 6}


def test_layer_device(connect):
    x, y = regression(96)

    def stage(layer):
        return {"dense": "CPU:1", "dense_1": "/cpu:2"}.get(layer.name)

    keras.backend.clear_session()
    one = compiled(mlp())
    keras.backend.clear_session()
    several = compiled(mlp())
    trained(connect, one, 1, x, y)
    _, trainer = trained(connect, several, None, x, y, layer_device=stage)
    assert relative_error(several, one) < ROUNDING
    assert products(trainer, x, y) == {"CPU:1": 2, "CPU:2": 3}


@pytest.mark.parametrize("name", ["GPU:0", "CPU:7", "TPU:0", "1"])
def test_no_device_of_a_worker(connect, name):
    strategy = connect(1, 2, cpu_devices=3)
    trainer = tfps.Trainer(compiled(mlp()), strategy, layer_device=lambda layer: name)
    with pytest.raises(tfps.ConfigError, match=f"layer_device gave '{name}'"):
        trainer.fit(*regression(32), verbose=0)
