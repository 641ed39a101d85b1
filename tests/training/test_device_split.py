"""A worker that splits its batches over several devices: it does what it does with one."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests import warm
from tests.conftest import mlp, regression, relative_error
from tests.training.devices import ROUNDING, assert_as_one, compiled, products, trained

soak = pytest.mark.soak

POLICIES = {
    "async": {},
    "overlap 1": {"overlap": 1},
    "overlap 2": {"overlap": 2},
    "bounded": {"consistency": tfps.BoundedStaleness(1)},
    "sync": {"consistency": tfps.Sync()},
    "local": {"consistency": tfps.LocalSteps(3)},
}


# With one worker a bound changes nothing, and an overlap of 1 is an easier one of 2.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=soak if n in ("bounded", "overlap 1") else []) for n in POLICIES],
)
def test_under_every_policy(connect, name):
    # The last batch has 10 examples: 3, 3 and 4.
    x, y = regression(330)
    assert_as_one(
        connect,
        lambda: compiled(mlp(), metrics=["mae"]),
        x,
        y,
        inference=name == "async",
        **POLICIES[name],
    )


@pytest.mark.parametrize("jit_compile", [pytest.param(False, marks=soak), True])
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

    assert_as_one(connect, make, x, y, inference=True, sample_weight=weights)


class Averaged(keras.losses.Loss):
    """A loss of the whole batch: it is no sum of what parts of the batch have."""

    def call(self, y_true, y_pred):
        error = keras.ops.mean(keras.ops.square(y_true - y_pred))
        return keras.ops.sqrt(error) + keras.ops.std(y_pred)


def test_a_loss_and_metrics_that_no_sum_of_parts_gives(connect):
    x, y = regression(160)

    def make():
        return compiled(mlp(), loss=Averaged(), metrics=["r2_score"])

    assert_as_one(connect, make, x, y, inference=True)


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


@pytest.mark.parametrize(
    "sparse_updates, jit_compile",
    [
        ("lazy", False),
        pytest.param("exact", True, marks=soak),
        pytest.param("exact", False, marks=soak),
        pytest.param("lazy", True, marks=soak),
    ],
)
def test_masks_and_rows_of_tables(connect, sparse_updates, jit_compile):
    x, y = tokens()

    def make():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return compiled(tagger(), loss=loss, metrics=["accuracy"], jit_compile=jit_compile)

    # Adam divides by second moments that are near 0.
    assert_as_one(connect, make, x, y, rounding=2e-5, inference=True, sparse_updates=sparse_updates)


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


@pytest.mark.parametrize("jit_compile", [pytest.param(False, marks=soak), True])
def test_lookups_of_several_inputs_and_an_added_loss(connect, jit_compile):
    x, _ = tokens()
    y = np.sin(x.sum(1, keepdims=True)).astype(np.float32)

    def make():
        model = Positions()
        model({"a": x[:2], "b": x[:2]})
        return compiled(model, keras.optimizers.SGD(0.1), jit_compile=jit_compile)

    assert_as_one(connect, make, {"a": x, "b": x[::-1]}, y, inference=True)


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


@pytest.mark.parametrize("jit_compile", [pytest.param(False, marks=soak), True])
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


def test_gradients_are_computed_where_the_forward_pass_was(connect):
    x, y = regression(96)
    model = compiled(mlp(), keras.optimizers.SGD(0.1))
    trainer = tfps.Trainer(model, connect(1, 2, cpu_devices=3), devices_per_worker=3)
    # Two layers: two products forward, and three backward; the input has no gradient.
    assert products(trainer, x, y) == {"CPU:0": 5, "CPU:1": 5, "CPU:2": 5}


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
def test_a_worker_that_is_a_process(tmp_path):
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = warm.run(["-c", PROGRAM], tmp_path, environ, tmp_path, timeout=140)
    assert done.returncode == 0, done.stderr
    devices, error = done.stdout.strip().rsplit(" ", 1)
    assert devices == "['CPU:0', 'CPU:1']" and float(error) < ROUNDING


def test_more_devices_than_there_are(connect):
    trainer = tfps.Trainer(compiled(mlp()), connect(1, 2, cpu_devices=3), devices_per_worker=4)
    with pytest.raises(tfps.ConfigError, match=r"devices_per_worker=4.*at most 3"):
        trainer.fit(*regression(32), verbose=0)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_no_number_of_devices(connect, count):
    with pytest.raises(tfps.ConfigError, match="devices_per_worker="):
        tfps.Trainer(compiled(mlp()), connect(1, 2), devices_per_worker=count)
