"""A worker with several devices: it does what it does with one."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tfps import _tf_placement
from tfps.cluster.calls import WorkerCalls
from tfps.cluster.devices import own_device
from tfps.cluster.remote_function import RemoteFunction

ROUNDING = 1e-6


def trained(connect, model, devices, x, y=None, workers=1, **arguments):
    """(history, trainer) after two epochs without shuffling."""
    fit = {name: arguments.pop(name) for name in ("sample_weight",) if name in arguments}
    strategy = connect(workers, 2, cpu_devices=3)
    trainer = tfps.Trainer(model, strategy, devices_per_worker=devices, **arguments)
    history = trainer.fit(
        x, y, batch_size=32, epochs=2, shuffle=False, verbose=0, validation_data=(x, y), **fit
    )
    return history.history, trainer


def compiled(model, optimizer=None, jit_compile=False, loss="mse", **arguments):
    model.compile(
        optimizer or keras.optimizers.Adam(1e-2), loss, jit_compile=jit_compile, **arguments
    )
    return model


def assert_as_one(connect, make, x, y, devices=3, rounding=ROUNDING, **arguments):
    """Trains `make()` on one device and on several, and compares weights, logs and predictions."""
    one, several = make(), make()
    expected, alone = trained(connect, one, 1, x, y, **arguments)
    history, trainer = trained(connect, several, devices, x, y, **arguments)
    assert relative_error(several, one) < rounding
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    part = keras.tree.map_structure(lambda t: t[:5], x)
    np.testing.assert_allclose(
        trainer.predict(part, batch_size=2, verbose=0),
        alone.predict(part, batch_size=2, verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )


POLICIES = {
    "async": {},
    "overlap 1": {"overlap": 1},
    "overlap 2": {"overlap": 2},
    "bounded": {"consistency": tfps.BoundedStaleness(1)},
    "sync": {"consistency": tfps.Sync()},
    "local": {"consistency": tfps.LocalSteps(3)},
}


@pytest.mark.parametrize("name", POLICIES)
def test_under_every_policy(connect, name):
    # The last batch has 10 examples: 3, 3 and 4.
    x, y = regression(330)
    assert_as_one(connect, lambda: compiled(mlp(), metrics=["mae"]), x, y, **POLICIES[name])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_two_workers_in_rounds(connect, jit_compile):
    x, y = regression(320)

    def make():
        return compiled(mlp(), jit_compile=jit_compile, steps_per_execution=2)

    assert_as_one(connect, make, x, y, devices=2, workers=2, consistency=tfps.Sync())


def test_sample_weights_and_a_batch_smaller_than_the_devices(connect):
    x, y = regression(34)  # Batches of 32 and of 2.
    weights = np.linspace(0.1, 3.0, len(x)).astype(np.float32)

    def make():
        return compiled(mlp(), weighted_metrics=["mae"])

    assert_as_one(connect, make, x, y, sample_weight=weights)


class Averaged(keras.losses.Loss):
    """A loss of the whole batch: it is no sum of what parts of the batch have."""

    def call(self, y_true, y_pred):
        error = keras.ops.mean(keras.ops.square(y_true - y_pred))
        return keras.ops.sqrt(error) + keras.ops.std(y_pred)


def test_a_loss_and_metrics_that_no_sum_of_parts_gives(connect):
    x, y = regression(160)

    def make():
        return compiled(mlp(), loss=Averaged(), metrics=["r2_score"])

    assert_as_one(connect, make, x, y)


def tokens(examples=70):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 20, [examples, 6])
    x *= np.arange(6) < rng.integers(1, 7, [examples, 1])  # 0 is masked.
    return x, np.cumsum(x, 1) % 5


def tagger():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input([6], dtype="int32"),
            keras.layers.Embedding(20, 8, mask_zero=True),
            keras.layers.LSTM(8, return_sequences=True),
            keras.layers.Dense(5),
        ]
    )


@pytest.mark.parametrize("sparse_updates", ["exact", "lazy"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_masks_and_rows_of_tables(connect, sparse_updates, jit_compile):
    x, y = tokens()

    def make():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return compiled(tagger(), loss=loss, metrics=["accuracy"], jit_compile=jit_compile)

    # Adam divides by second moments that are near 0.
    assert_as_one(connect, make, x, y, rounding=2e-5, sparse_updates=sparse_updates)


class Positions(keras.Model):
    """Looks up the same rows for every example, and the rows of two inputs in one table."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(1)
        self.words = keras.layers.Embedding(20, 8)
        self.places = keras.layers.Embedding(6, 8)
        self.head = keras.layers.Dense(1)

    def call(self, inputs):
        places = self.places(keras.ops.arange(6))
        both = self.words(inputs["a"]) * self.words(inputs["b"]) + places
        self.add_loss(1e-2 * keras.ops.mean(keras.ops.square(both)))
        return self.head(keras.ops.mean(both, 1))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_lookups_of_several_inputs_and_an_added_loss(connect, jit_compile):
    x, _ = tokens()
    y = np.sin(x.sum(1, keepdims=True)).astype(np.float32)

    def make():
        model = Positions()
        model({"a": x[:2], "b": x[:2]})
        return compiled(model, keras.optimizers.SGD(0.1), jit_compile=jit_compile)

    assert_as_one(connect, make, {"a": x, "b": x[::-1]}, y)


class State(keras.layers.Layer):
    """Counts batches and examples, keeps a mean and what only the first device has."""

    def build(self, shape):
        def variable(dtype, **arguments):
            return self.add_weight(
                shape=(), dtype=dtype, initializer="zeros", trainable=False, **arguments
            )

        self.batches, self.examples = variable("int32"), variable("int32")
        self.total = variable("float32", aggregation="sum")
        self.mean = variable("float32")

    def call(self, x, training=False):
        if training:
            ops = keras.ops
            self.batches.assign_add(1)
            self.examples.assign_add(ops.shape(x)[0])
            self.total.assign_add(ops.sum(x))
            self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x))
        return x


@pytest.mark.parametrize("jit_compile", [False, True])
def test_state_that_is_not_trained(connect, jit_compile):
    x, y = regression(100)

    def make():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input([8]), State(), keras.layers.Dense(1)])
        return compiled(model, keras.optimizers.SGD(0.1), jit_compile=jit_compile)

    assert_as_one(connect, make, x, y)


def test_batch_norm_normalizes_by_device(connect):
    """The moving mean is that of one device; the variance is within the devices' parts."""
    x, y = regression(33)
    models = [compiled(mlp(batch_norm=True), keras.optimizers.SGD(0.0)) for _ in range(2)]
    for model, devices in zip(models, (1, 3), strict=True):
        strategy = connect(1, 2, cpu_devices=3)
        tfps.Trainer(model, strategy, devices_per_worker=devices).fit(
            x, y, batch_size=33, shuffle=False, verbose=0
        )
    one, several = (model.layers[1] for model in models)
    np.testing.assert_allclose(several.moving_mean, one.moving_mean, rtol=1e-5, atol=1e-7)
    hidden = np.asarray(models[0].layers[0](x))
    within = np.mean([np.var(part, 0) for part in np.split(hidden, 3)], 0)
    np.testing.assert_allclose(several.moving_variance, 0.9 + 0.1 * within, rtol=1e-5)


class Noise(keras.layers.Layer):
    """Writes down what dropout drew for each example."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)
        self.unused = self.add_weight(shape=(1,))

    def call(self, x, training=False):
        return self.dropout(keras.ops.ones_like(x), training=True)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_devices_draw_different_numbers(connect, jit_compile):
    model = keras.Sequential([keras.Input([200]), Noise()])
    compiled(model, jit_compile=jit_compile)
    trainer = tfps.Trainer(model, connect(1, 2, cpu_devices=3), devices_per_worker=3)
    drawn = trainer.predict(np.ones([6, 200], np.float32), batch_size=6, verbose=0)
    first, second, third = np.split(drawn, 3)
    assert 0.3 < np.mean(drawn == 0) < 0.7
    for a, b in ((first, second), (second, third), (first, third)):
        assert not np.array_equal(a, b)


def test_loss_scaling(connect):
    x, y = regression(100)

    def make():
        inner = keras.optimizers.SGD(0.1, global_clipnorm=0.5)
        return compiled(mlp(), keras.optimizers.LossScaleOptimizer(inner))

    assert_as_one(connect, make, x, y)


class OwnStep(keras.Model):
    """Two forward passes of its own in a step, with a tape of its own."""

    def __init__(self):
        super().__init__()
        self.network = mlp(dropout=0.0)

    def call(self, x):
        return self.network(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x) - y))
            loss += tf.reduce_mean(tf.abs(self.network(-x)))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_own_train_step(connect, jit_compile):
    x, y = regression(100)

    def make():
        model = OwnStep()
        model(x[:1])
        return compiled(model, keras.optimizers.SGD(0.1), jit_compile=jit_compile)

    assert_as_one(connect, make, x, y)


def test_a_lookup_layer_ragged_and_sparse_inputs(connect):
    words = np.array([f"w{i % 7}" for i in range(64)])[:, None]
    ragged = tf.RaggedTensor.from_row_lengths(np.arange(64 * 2, dtype=np.float32), [1, 3] * 32)
    sparse = tf.sparse.from_dense(np.eye(64, 5, dtype=np.float32))
    y = np.arange(64, dtype=np.float32)[:, None] / 64

    class Mixed(keras.Model):
        def __init__(self):
            super().__init__()
            keras.utils.set_random_seed(1)
            self.lookup = keras.layers.StringLookup(vocabulary=[f"w{i}" for i in range(7)])
            self.embedding = keras.layers.Embedding(9, 4)
            self.dense = keras.layers.Dense(1)

        def call(self, inputs):
            word = self.embedding(self.lookup(inputs["word"]))[:, 0]
            mean = tf.reduce_mean(inputs["ragged"], 1, keepdims=True) / 64
            dense = inputs["sparse"]
            if isinstance(dense, tf.SparseTensor):  # Keras builds the model with a dense one.
                dense = tf.sparse.to_dense(dense)
            return self.dense(tf.concat([word, mean, tf.ensure_shape(dense, [None, 5])], 1))

    batch = {"word": words, "ragged": ragged, "sparse": sparse}

    def model():
        made = Mixed()
        made(
            {
                "word": tf.constant(words[:2]),
                "ragged": ragged[:2],
                "sparse": tf.sparse.slice(sparse, [0, 0], [2, 5]),
            }
        )
        return compiled(made, keras.optimizers.SGD(0.1))

    dataset = tf.data.Dataset.from_tensor_slices((batch, y)).batch(10)
    strategy = connect(1, 2, cpu_devices=3)
    one, several = model(), model()
    for made, devices in ((one, 1), (several, 3)):
        tfps.Trainer(made, strategy, devices_per_worker=devices).fit(dataset, verbose=0)
    assert relative_error(several, one) < ROUNDING


def test_codecs_see_the_sum(connect):
    """One push leaves, of as many bytes as with one device."""
    x, y = regression(64)
    sent = []
    for devices in (1, 2):
        model = compiled(mlp(), keras.optimizers.SGD(0.1))
        _, trainer = trained(connect, model, devices, x, y, push=tfps.compression.Int8())
        sent.append((trainer.stats["push_bytes_per_step"], int(model.optimizer.iterations)))
    assert sent[0] == sent[1]


# Where things run.


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


def products(trainer, x, y):
    """Device -> how many matrix products a step of training computes there."""
    session = trainer._session
    session.prepare(feed := session.feed(x, None, y=y, batch_size=32), train=True)
    side = session.enter(trainer.consistency, False)
    step = session.steps.training(side, trainer.consistency, feed)
    found = {}
    for op in _tf_placement.operations(step._run.graph):
        if op.type == "MatMul":
            device = op.device.rpartition("device:")[2]
            found[device] = found.get(device, 0) + 1
    return found


def test_gradients_are_computed_where_the_forward_pass_was(connect):
    x, y = regression(96)
    model = compiled(mlp(), keras.optimizers.SGD(0.1))
    trainer = tfps.Trainer(model, connect(1, 2, cpu_devices=3), devices_per_worker=3)
    # Two layers: two products forward, and three backward; the input has no gradient.
    assert products(trainer, x, y) == {"CPU:0": 5, "CPU:1": 5, "CPU:2": 5}


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


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
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


PROGRAM = """
import keras
import numpy as np
import tfps

def compiled():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input([8]), *layers])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    return model

x = np.random.default_rng(0).normal(size=(70, 8)).astype("float32")
y = np.sin(x[:, :1] + x[:, 1:2])
arguments = dict(batch_size=32, epochs=2, shuffle=False, verbose=0)
plain, model = compiled(), compiled()
plain.fit(x, y, **arguments)
with tfps.LocalCluster(1, 1, processes=True, cpu_devices=2) as cluster:
    strategy = tfps.ParameterServerStrategy(cluster)
    tfps.Trainer(model, strategy, devices_per_worker=2).fit(x, y, **arguments)
    pairs = zip(model.get_weights(), plain.get_weights(), strict=True)
    error = max(float(np.max(np.abs(a - b))) for a, b in pairs)
    print(strategy.device_table().splitlines()[2].split()[3:], error)
"""


@pytest.mark.processes
@pytest.mark.timeout(150)
def test_a_worker_that_is_a_process():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=140,
    )
    assert done.returncode == 0, done.stderr
    devices, error = done.stdout.strip().rsplit(" ", 1)
    assert devices == "['CPU:0', 'CPU:1']" and float(error) < ROUNDING


# What is refused.


def test_more_devices_than_there_are(connect):
    trainer = tfps.Trainer(compiled(mlp()), connect(1, 2, cpu_devices=3), devices_per_worker=4)
    with pytest.raises(tfps.ConfigError, match=r"devices_per_worker=4.*at most 3"):
        trainer.fit(*regression(32), verbose=0)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_no_number_of_devices(connect, count):
    with pytest.raises(tfps.ConfigError, match="devices_per_worker="):
        tfps.Trainer(compiled(mlp()), connect(1, 2), devices_per_worker=count)


@pytest.mark.parametrize("name", ["GPU:0", "CPU:7", "TPU:0", "1"])
def test_no_device_of_a_worker(connect, name):
    strategy = connect(1, 2, cpu_devices=3)
    trainer = tfps.Trainer(compiled(mlp()), strategy, layer_device=lambda layer: name)
    with pytest.raises(tfps.ConfigError, match=f"layer_device gave '{name}'"):
        trainer.fit(*regression(32), verbose=0)


def test_states_of_the_batchs_shape(connect):
    model = keras.Sequential(
        [keras.Input(batch_shape=[6, 4, 2]), keras.layers.LSTM(3, stateful=True)]
    )
    trainer = tfps.Trainer(compiled(model), connect(1, 2, cpu_devices=3), devices_per_worker=2)
    with pytest.raises(tfps.ConfigError, match="devices_per_worker=1"):
        trainer.fit(np.zeros([6, 4, 2]), np.zeros([6, 3]), batch_size=6, verbose=0)
