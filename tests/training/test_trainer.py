"""`Trainer` beside plain Keras on the same batches."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tfps import _tf

o = keras.optimizers
soak = pytest.mark.soak
EXCLUDED = ["bias"]


def adamw():
    optimizer = o.AdamW(1e-2, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=EXCLUDED)
    return optimizer


OPTIMIZERS = {
    "momentum": lambda: o.SGD(0.02, momentum=0.9),
    "adam": lambda: o.Adam(1e-2),
    "adamw": adamw,
    "rmsprop": lambda: o.RMSprop(1e-3),
}
QUICK = ("adam", False), ("adamw", True)


def pair(strategy, optimizer, make=mlp, **compile_args):
    """A trainer and plain Keras's model, alike."""
    models = []
    for _ in range(2):
        model = make()
        model.compile(optimizer(), "mse", **{"jit_compile": False, **compile_args})
        models.append(model)
    return tfps.Trainer(models[0], strategy), models[1]


# The optimizers themselves are held to Keras's, without servers, in `tests/model`.
@pytest.mark.parametrize(
    "optimizer, batch_norm",
    [
        pytest.param(name, bn, marks=[] if (name, bn) in QUICK else soak)
        for name in OPTIMIZERS
        for bn in (False, True)
    ],
)
def test_one_worker_equals_keras(connect, optimizer, batch_norm):
    x, y = regression(320)
    trainer, reference = pair(connect(), OPTIMIZERS[optimizer], lambda: mlp(batch_norm))
    args = {"batch_size": 32, "epochs": 5, "shuffle": False, "verbose": 0}
    mine = trainer.fit(x, y, **args)
    theirs = reference.fit(x, y, **args)
    assert int(trainer.model.optimizer.iterations) == 50
    assert relative_error(trainer.model, reference) < 1e-5
    np.testing.assert_allclose(mine.history["loss"], theirs.history["loss"], rtol=1e-5)


def test_partitioned_and_compiled_and_several_steps_a_call_change_nothing(connect):
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(3)
    x, y = regression(336)  # The last batch is shorter, the last call too.
    trainer, reference = pair(
        connect(partitioner=partitioner),
        OPTIMIZERS["adam"],
        jit_compile=True,
        steps_per_execution=4,
    )
    args = {"batch_size": 32, "epochs": 3, "shuffle": False, "verbose": 0}
    trainer.fit(x, y, **args)
    reference.fit(x, y, **args)
    assert int(trainer.model.optimizer.iterations) == 33
    assert relative_error(trainer.model, reference) < 1e-5
    assert len(trainer._session.served.store.plan.shards) > len(trainer.model.weights)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: o.SGD(
            o.schedules.ExponentialDecay(0.1, 5, 0.5),
            global_clipnorm=0.1,
            use_ema=True,
            ema_momentum=0.9,
        ),
        lambda: o.Adam(0.01, gradient_accumulation_steps=3, clipnorm=0.05),
        pytest.param(lambda: o.Adafactor(0.05), marks=soak),
        pytest.param(lambda: o.SGD(0.1, global_clipnorm=0.01), marks=soak),
        pytest.param(lambda: o.SGD(0.1, use_ema=True, ema_momentum=0.9), marks=soak),
        pytest.param(lambda: o.SGD(o.schedules.ExponentialDecay(0.1, 5, 0.5)), marks=soak),
    ],
    ids=["several", "accumulation", "adafactor", "global_clipnorm", "ema", "schedule"],
)
def test_optimizer_options(connect, optimizer):
    x, y = regression(160)
    trainer, reference = pair(connect(), optimizer)
    args = {"batch_size": 16, "shuffle": False, "verbose": 0}
    trainer.fit(x, y, **args)
    reference.fit(x, y, **args)
    assert relative_error(trainer.model, reference) < 1e-5


def test_weights_metrics_and_class_weights(connect):
    x = regression(96)[0]
    y = (x[:, 0] > 0).astype("int32")
    weight = np.linspace(0.5, 1.5, 96).astype("float32")
    history = []
    models = []
    for run in ("tfps", "keras"):
        model = mlp(outputs=2)
        model.compile(
            o.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            weighted_metrics=["accuracy"],
            jit_compile=False,
        )
        fit = tfps.Trainer(model, connect()).fit if run == "tfps" else model.fit
        history.append(
            fit(
                x,
                y,
                batch_size=32,
                shuffle=False,
                sample_weight=weight,
                validation_split=0.25,
                epochs=2,
                verbose=0,
            ).history
        )
        models.append(model)
    assert list(history[0]) == list(history[1])
    for name in history[1]:
        np.testing.assert_allclose(history[0][name], history[1][name], rtol=1e-4)
    assert relative_error(*models) < 1e-5


class Regularized(keras.Model):
    """Unbuilt, with a custom loss term, a frozen layer, an unused layer and a counter."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(3)
        self.frozen = keras.layers.Dense(8, trainable=False)
        self.dense = keras.layers.Dense(1, kernel_regularizer="l2", kernel_constraint="non_neg")
        self.unused = keras.layers.Dense(3)

    def build(self, shape):
        self.frozen.build(shape)
        self.dense.build((shape[0], 8))
        self.unused.build(shape)
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x, training=False):
        h = self.frozen(x)
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(h)))
        if training:
            self.count.assign_add(1)
        return self.dense(h)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_subclassed_model(connect):
    x, y = regression(160)
    trainer, reference = pair(connect(), lambda: o.SGD(0.05, weight_decay=0.1), Regularized)
    args = {"batch_size": 16, "shuffle": False, "verbose": 0}
    trainer.fit(x, y, **args)
    reference.fit(x, y, **args)
    assert int(trainer.model.count) == 10
    assert relative_error(trainer.model, reference) < 1e-5
    assert (trainer.model.dense.kernel.numpy() >= 0).all()


def test_trained_model_is_saved_and_loaded_by_plain_keras(connect, tmp_path):
    x, y = regression(64)
    strategy = connect()
    with strategy.scope():
        model = mlp()
        model.compile(o.SGD(0.1), "mse")
    before = [w.copy() for w in model.get_weights()]
    tfps.Trainer(model, strategy).fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for a, b, c in zip(loaded.get_weights(), model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(connect, policy):
    keras.config.set_dtype_policy(policy)
    x, y = regression(320)
    trainer, reference = pair(connect(), lambda: o.SGD(0.05), jit_compile=False)
    args = {"batch_size": 16, "shuffle": False, "verbose": 0, "epochs": 2}
    mine = trainer.fit(x, y, **args)
    theirs = reference.fit(x, y, **args)
    np.testing.assert_allclose(mine.history["loss"], theirs.history["loss"], rtol=1e-3)
    assert relative_error(trainer.model, reference) < 1e-3
    assert mine.history["loss"][1] < mine.history["loss"][0]


def test_overflow_skips_the_update_on_every_server(connect):
    keras.config.set_dtype_policy("mixed_float16")
    x, y = regression(16)
    model = mlp()
    # The first scale overflows float16, and so do the next few.
    model.compile(o.LossScaleOptimizer(o.SGD(0.1), initial_scale=2.0**24), "mse")
    before = model.get_weights()
    trainer = tfps.Trainer(model, connect())
    trainer.fit(x, y, batch_size=16, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations) == 0
    trainer.fit(x, y, batch_size=16, epochs=20, verbose=0)
    assert 0 < int(model.optimizer.iterations) < 20
    assert np.isfinite(model.get_weights()[0]).all()
    assert not np.array_equal(model.get_weights()[0], before[0])


class Constant(keras.Model):
    """A loss with gradient 1 everywhere, in two variables."""

    def build(self, shape):
        self.a = self.add_weight(shape=(3,), initializer="zeros")
        self.b = self.add_weight(shape=(2, 2), initializer="zeros")

    def call(self, x):
        return keras.ops.sum(self.a)[None] + keras.ops.sum(self.b)[None]


def ones(context):
    return tf.data.Dataset.from_tensors((tf.ones([1, 1]), tf.ones([1, 1]))).repeat()


@pytest.mark.parametrize(
    "steps_per_execution, steps",
    [(1, 100), (10, 400), pytest.param(1, 2000, marks=soak), pytest.param(10, 8000, marks=soak)],
)
def test_no_update_is_lost_or_doubled(connect, steps_per_execution, steps):
    model = Constant()
    model.compile(
        o.SGD(2.0**-8), lambda y, p: p, steps_per_execution=steps_per_execution, jit_compile=False
    )
    tfps.Trainer(model, connect(workers=4)).fit(ones, steps_per_epoch=steps, verbose=0)
    assert int(model.optimizer.iterations) == steps
    for value in model.get_weights():
        np.testing.assert_array_equal(value, np.full_like(value, -steps * 2.0**-8))


@pytest.mark.parametrize("steps", [400, pytest.param(8000, marks=soak)])
def test_adam_under_load(connect, steps):
    model = Constant()
    model.compile(o.Adam(2.0**-8), lambda y, p: p, steps_per_execution=10, jit_compile=False)
    trainer = tfps.Trainer(model, connect(workers=4))
    trainer.fit(ones, steps_per_epoch=steps, verbose=0)
    optimizers = trainer._session.served.store.optimizers.values()
    assert {int(optimizer.iterations.numpy()) for optimizer in optimizers} == {steps}
    for value in model.get_weights():
        assert np.isfinite(value).all()
        # With a constant gradient every step of Adam is the learning rate.
        np.testing.assert_allclose(value, -steps * 2.0**-8, rtol=1e-3)


class Recorder(keras.Model):
    """Counts, on the servers, the examples and the ones kept by dropout that it saw."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)

    def build(self, shape):
        self.w = self.add_weight(shape=(), initializer="zeros")
        for name in ("seen", "kept"):
            setattr(
                self,
                name,
                self.add_weight(
                    shape=(64,), initializer="zeros", trainable=False, aggregation="sum", name=name
                ),
            )

    def call(self, x, training=False):
        if training:
            mask = keras.ops.cast(self.dropout(keras.ops.ones((64,)), training=True) > 0, "float32")
            self.kept.assign_add(mask)
            self.seen.assign_add(keras.ops.sum(keras.ops.one_hot(x[:, 0], 64), axis=0))
        return self.w * keras.ops.ones_like(x, dtype="float32")


def test_workers_see_different_data_and_masks(connect):
    def dataset_fn(context):
        mine = context.shard(range(64))
        assert len(mine) == 16
        return tf.data.Dataset.from_tensor_slices(
            (np.array(mine)[:, None], np.zeros([16, 1]))
        ).batch(4)

    model = Recorder()
    model.compile(o.SGD(0.1), "mse")
    tfps.Trainer(model, connect(workers=4)).fit(dataset_fn, verbose=0)
    np.testing.assert_array_equal(model.seen.numpy(), np.ones(64))
    # 16 steps; one mask for all would make every count 0 or 16.
    kept = model.kept.numpy()
    assert 5 < kept.mean() < 11
    assert len(set(kept)) > 4


def test_a_seeded_run_repeats_bit_for_bit(connect):
    x, y = regression(128)
    runs = []
    for _ in range(2):
        model = mlp(dropout=0.5)
        model.compile(o.Adam(1e-2), "mse", jit_compile=True)
        history = tfps.Trainer(model, connect()).fit(x, y, batch_size=16, epochs=2, verbose=0)
        runs.append((model.get_weights(), history.history["loss"]))
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs[0][1] == runs[1][1]


def test_parameters_and_slots_are_spread_over_the_servers(connect):
    x, y = regression(64)
    model = mlp()
    model.compile(o.Adam(), "mse")
    trainer = tfps.Trainer(model, connect())
    trainer.fit(x, y, verbose=0)
    store = trainer._session.served.store
    stored = [*store.stored, *(v for s in store.optimizers.values() for v in s.state)]
    assert {v.value.device.split("/")[1] for v in stored} == {"job:ps"}
    assert len({v.value.device for v in stored}) == 2
    slots = sum(int(np.prod(v.shape)) for v in stored) - 2  # Without the two `iterations`.
    assert slots == 3 * model.count_params()


def test_compiling_anew_and_freezing_take_effect(connect):
    x, y = regression(64)
    trainer, reference = pair(connect(), lambda: o.SGD(0.1))
    args = {"batch_size": 16, "shuffle": False, "verbose": 0}
    for fit, model in ((trainer.fit, trainer.model), (reference.fit, reference)):
        fit(x, y, **args)
        model.layers[0].trainable = False
        model.compile(
            o.Adam(0.01), "mae", metrics=["mse"], jit_compile=False, steps_per_execution=2
        )
        last = fit(x, y, **args).history
    assert relative_error(trainer.model, reference) < 1e-5
    assert last["mse"][0] > 0
    assert int(trainer.model.optimizer.iterations) == 4


def test_history_is_json(connect):
    x, y = regression(32)
    model = mlp()
    model.compile("sgd", "mse")
    json.dumps(tfps.Trainer(model, connect()).fit(x, y, verbose=0).history)


def test_a_process_that_is_no_longer_connected(connect, monkeypatch):
    """TensorFlow would run everything here, on devices that stand in for the servers'."""
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect())
    x, y = regression(16)
    monkeypatch.setattr(_tf, "is_connected", lambda: False)
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(tfps.ConfigError, match="no longer connected to the cluster"):
            call(x, y, verbose=0)
