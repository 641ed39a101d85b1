"""`Sync`: N workers are one with their batches as one."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting, mlp, regression, relative_error, watched
from tfps import compression

o = keras.optimizers
soak = pytest.mark.soak


def both(strategy, make, optimizer, x, y, batch, epochs=1, **trainer_args):
    """The same data through `Sync` and, in batches of all workers together, plain Keras."""
    models = [make(), make()]
    for model in models:
        model.compile(optimizer(), "mse", jit_compile=False)
    trainer = tfps.Trainer(models[0], strategy, tfps.Sync(), **trainer_args)
    args = {"epochs": epochs, "shuffle": False, "verbose": 0}
    mine = trainer.fit(x, y, batch_size=batch, **args).history
    workers = strategy.cluster.num_workers
    theirs = models[1].fit(x, y, batch_size=batch * workers, **args).history
    np.testing.assert_allclose(mine["loss"], theirs["loss"], rtol=1e-5)
    assert trainer.stats["staleness_max"] == [0.0] * epochs
    assert int(models[0].optimizer.iterations) == int(models[1].optimizer.iterations)
    return models


OPTIMIZERS = {"momentum": lambda: o.SGD(0.02, momentum=0.9), "adam": lambda: o.Adam(1e-2)}


@pytest.mark.parametrize(
    "workers, shards, optimizer",
    [
        (2, 2, "momentum"),
        pytest.param(3, 2, "adam", marks=soak),
        pytest.param(2, 1, "adam", marks=soak),
        pytest.param(3, 1, "momentum", marks=soak),
    ],
)
def test_equals_one_process(connect, workers, shards, optimizer):
    """The last of the ten updates of each epoch is of fewer and unequal batches.

    Workers' gradients are added in any order, and what that rounds weighs most at first, while
    biases are small: so there are ten epochs.
    """
    epochs = 10
    strategy = connect(workers, partitioner=tfps.partitioners.FixedShards(shards))
    x, y = regression(10 * 8 * workers - 11)
    models = both(strategy, mlp, OPTIMIZERS[optimizer], x, y, batch=8, epochs=epochs)
    assert int(models[1].optimizer.iterations) == 10 * epochs
    assert relative_error(*models) < 1e-6


def table_model():
    keras.utils.set_random_seed(5)
    ids = keras.Input([6], dtype="int32")
    # With a regularizer Keras's gradient is dense; its sparse one squares the parts of
    # a repeated id one by one (Keras 3.15).
    embedding = keras.layers.Embedding(40, 4, embeddings_regularizer=keras.regularizers.L2(0.0))
    return keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(embedding(ids))))


def sparse_model():
    model = table_model()
    model.layers[1].embeddings_regularizer = None
    model.layers[1].embeddings.regularizer = None
    return model


def ids(below):
    rng = np.random.default_rng(0)
    x = rng.integers(0, below, (145, 6)).astype(np.int32)
    return x, np.sin(x.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("updates", ["lazy", pytest.param("exact", marks=soak)])
def test_rows_of_tables_are_summed_over_the_workers(connect, updates):
    """With Adagrad, whose rows without a gradient stay, lazy is exact, if the rows that
    several workers looked up are updated once, with their sum."""
    strategy = connect(2, partitioner=tfps.partitioners.FixedShards(2))
    models = [sparse_model(), table_model()]
    for model in models:
        model.compile(o.Adagrad(0.1), "mse", jit_compile=False)
    x, y = ids(40)
    trainer = tfps.Trainer(models[0], strategy, tfps.Sync(), sparse_updates=updates)
    args = {"epochs": 3, "shuffle": False, "verbose": 0}
    trainer.fit(x, y, batch_size=8, **args)
    models[1].fit(x, y, batch_size=16, **args)
    assert len(trainer._session.served.store.plan.tables) == 1
    assert relative_error(*models) < 1e-5


@pytest.mark.soak  # A sum of rows is applied as rows are, of which `tests/store` holds it.
def test_lazy_updates_leave_other_rows_bit_identical(connect):
    model = sparse_model()
    model.compile(o.AdamW(0.01, weight_decay=0.1), "mse")
    before = model.get_weights()[0]
    x, y = ids(20)
    tfps.Trainer(model, connect(2), tfps.Sync(), sparse_updates="lazy").fit(x, y, 8, verbose=0)
    after = model.get_weights()[0]
    np.testing.assert_array_equal(after[20:], before[20:])
    assert (np.abs(after[:20] - before[:20]).max(axis=1) > 0).all()


def test_exact_updates_sum_rows_and_decay_all(connect):
    strategy = connect(2, partitioner=tfps.partitioners.FixedShards(2))
    x, y = ids(20)
    models = [sparse_model(), table_model()]
    for model in models:
        model.compile(o.AdamW(0.01, weight_decay=0.1), "mse", jit_compile=False)
    trainer = tfps.Trainer(models[0], strategy, tfps.Sync())
    args = {"epochs": 2, "shuffle": False, "verbose": 0}
    trainer.fit(x, y, batch_size=8, **args)
    models[1].fit(x, y, batch_size=16, **args)
    assert relative_error(*models) < 1e-5


def test_moving_statistics_are_the_mean_of_the_workers(connect):
    x, y = regression(16 * 5 - 3)
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input([8]),
        keras.layers.BatchNormalization(momentum=0.5),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    model.compile(o.SGD(0.1), "mse")
    tfps.Trainer(model, connect(2), tfps.Sync()).fit(x, y, batch_size=8, shuffle=False, verbose=0)
    mean, variance = np.zeros(8), np.ones(8)
    for begin in range(0, len(x), 16):
        parts = [x[begin : begin + 8], x[begin + 8 : begin + 16]]
        shares = [len(p) / sum(map(len, parts)) for p in parts]
        mean = sum(s * (mean + p.mean(0)) / 2 for s, p in zip(shares, parts, strict=True))
        variance = sum(s * (variance + p.var(0)) / 2 for s, p in zip(shares, parts, strict=True))
    np.testing.assert_allclose(model.layers[0].moving_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.layers[0].moving_variance, variance, rtol=1e-5)
    assert np.isfinite(model.layers[2].kernel).all()


# Loss scaling.


def scaled(scale):
    keras.config.set_dtype_policy("mixed_float16")
    model = mlp()
    model.compile(o.LossScaleOptimizer(o.SGD(0.1), initial_scale=scale), "mse", jit_compile=False)
    return model


@pytest.mark.parametrize("overflows", [[1], *(pytest.param(w, marks=soak) for w in ([0], [0, 1]))])
def test_workers_that_overflow_are_left_out_of_the_round(connect, overflows):
    strategy = connect(2)
    x, y = regression(16)

    def dataset_fn(context):
        # Infinity in float16 on some workers.
        mine = x * 1e6 if context.worker_index in overflows else x
        return tf.data.Dataset.from_tensors((mine, y))

    model, reference = scaled(256.0), scaled(256.0)
    trainer = tfps.Trainer(model, strategy, tfps.Sync())
    trainer.fit(dataset_fn, verbose=0)
    if len(overflows) < 2:
        reference.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert int(model.optimizer.iterations) == (len(overflows) < 2)
    # Once for the round, not for each worker.
    assert trainer._session.served.store.loss_scale.variables[0].numpy() == 128.0
    overflows.clear()  # And the next round is as any other; the dataset is made anew.
    before = model.get_weights()[0]
    trainer.fit(dataset_fn, verbose=0)
    assert not np.array_equal(model.get_weights()[0], before)
    assert np.isfinite(model.get_weights()[0]).all()


def test_what_a_codec_still_has_of_a_worker_that_overflows_is_sent_once(connect):
    """A round in which all overflow is as if it had not been."""
    x, y = regression(16)
    weights = []
    for batches in ([x, x], [x, x * 1e6, x]):

        def dataset_fn(context, batches=batches):
            return tf.data.Dataset.from_tensor_slices((np.stack(batches), [y] * len(batches)))

        model = scaled(256.0)
        codec = compression.TopK(0.1, min_bytes=0)
        tfps.Trainer(model, connect(2), tfps.Sync(), push=codec).fit(dataset_fn, verbose=0)
        assert int(model.optimizer.iterations) == 2
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_round_has_somebody_to_wait_for(connect):
    model = mlp()
    model.compile("sgd", "mse")
    with pytest.raises(tfps.ConfigError, match="waits for none of 2 workers"):
        tfps.Trainer(model, connect(2), tfps.Sync(backups=2))


# Errors.


class Picky(keras.Model):
    """A line, which refuses large numbers."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        with tf.control_dependencies([tf.debugging.assert_less(x, 100.0, "x is too large")]):
            return self.dense(tf.identity(x))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "policy",
    [
        tfps.Sync(),
        pytest.param(tfps.LocalSteps(2), marks=soak),
        pytest.param(tfps.BoundedStaleness(1), marks=soak),
    ],
)
def test_an_error_in_a_round_names_the_worker_and_leaves_nothing_behind(connect, policy):
    strategy = connect(2)
    x, y = regression(80)
    bad = np.where(np.arange(80)[:, None] == 60, 1000, x)

    def dataset_fn(context):
        half = slice(0, 40) if context.worker_index == 0 else slice(40, 80)
        return tf.data.Dataset.from_tensor_slices((bad[half], y[half])).batch(8)

    models = [Picky(), Picky()]
    for model in models:
        model.build((None, 8))
        model.compile(o.SGD(0.05), "mse", jit_compile=False)
    initial = models[1].get_weights()
    trainer = tfps.Trainer(models[0], strategy, policy)
    begin = time.perf_counter()
    with pytest.raises(tfps.WorkerError, match="x is too large") as caught:
        trainer.fit(dataset_fn, verbose=0)
    assert time.perf_counter() - begin < 20
    assert caught.value.worker == 1
    assert caught.value.address == strategy.cluster.spec["worker"][1]
    models[0].set_weights(initial)
    trainer.consistency = tfps.Sync()
    trainer.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    models[1].fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert relative_error(*models) < 1e-5


def test_backup_rounds_of_all_but_one(connect):
    policy, log = watched(tfps.Sync(backups=1))
    model = Counting.compiled(o.SGD(1.0))
    x = np.ones([90, 1], np.float32)
    tfps.Trainer(model, connect(3), policy).fit(x, x, batch_size=1, verbose=0)
    rounds = [event[1] for event in log if event[0] == "due"]
    np.testing.assert_array_equal(model.w, np.full(4, -float(len(rounds))))
    assert int(model.optimizer.iterations) == len(rounds)
    # What was dropped changed nothing, the counter neither.
    assert int(model.batches) == sum(map(len, rounds))
    assert {len(shares) for shares in rounds[:-2]} == {2}
