"""Programs as Keras's users write them: a Trainer with one worker does what plain Keras does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error


def both(strategy, make, **compile_args):
    """(a Trainer, a plain Keras model), two models that `make` makes, compiled alike."""
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        model = make()
        model.compile(**{"optimizer": keras.optimizers.SGD(0.05), "loss": "mse", **compile_args})
        models.append(model)
    return tfps.Trainer(models[0], strategy), models[1]


def assert_alike(trainer, reference, x, y=None, rtol=1e-5, **fit_args):
    """`fit`, `evaluate` and `predict` give the same."""
    args = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0, **fit_args}
    mine, theirs = (one.fit(x, y, **args).history for one in (trainer, reference))
    assert list(mine) == list(theirs)
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=rtol, atol=1e-6)
    if reference.weights:
        assert relative_error(trainer.model, reference) < rtol
    mine, theirs = (one.evaluate(x, y, verbose=0) for one in (trainer, reference))
    np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=1e-6)
    inputs = x.map(lambda x, y: x) if isinstance(x, tf.data.Dataset) else x
    mine, theirs = (one.predict(inputs, verbose=0) for one in (trainer, reference))
    np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=1e-6)


def test_sparse_tensors(connect):
    connect()  # Data that is made before is on a device that connecting renames.
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(64, 10)) * (rng.random((64, 10)) < 0.2)
    dense = dense.astype("float32")
    y = dense.sum(axis=1, keepdims=True)

    def make():
        inputs = keras.Input([10], sparse=True)
        return keras.Model(inputs, keras.layers.Dense(1)(inputs))

    data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(dense), y)).batch(16)
    assert_alike(*both(connect(), make), data, batch_size=None)
    # Keras takes whole sparse tensors, as it takes arrays.
    assert_alike(*both(connect(), make), tf.sparse.from_dense(dense), y)


class Heard(keras.callbacks.Callback):
    """Which hooks of batches are called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(("begin", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("end", batch))


@pytest.mark.parametrize("form", ["sparse", "ragged"])
def test_hooks_of_steps_per_execution_with_more_than_tensors(connect, form):
    strategy = connect()
    x, y = regression(56)
    given = tf.sparse.from_dense(x)
    if form == "ragged":
        given = tf.RaggedTensor.from_tensor(x, lengths=np.arange(56) % 8 + 1)
    data = tf.data.Dataset.from_tensor_slices((given, y)).batch(8)

    class Summed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            whole = tf.sparse.to_dense(x) if form == "sparse" else x.to_tensor(shape=[None, 8])
            return self.dense(tf.reshape(whole, [-1, 8]))

    trainer, reference = both(strategy, Summed, steps_per_execution=3)
    mine, theirs = Heard(), Heard()
    trainer.fit(data, epochs=2, verbose=0, callbacks=[mine])
    reference.fit(data, epochs=2, verbose=0, callbacks=[theirs])
    assert mine.calls == theirs.calls
    assert relative_error(trainer.model, reference) < 1e-5


def test_scipy_matrices(connect):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    matrix = scipy_sparse.random(64, 10, 0.2, "csr", "float32", random_state=0)
    y = np.asarray(matrix.sum(axis=1), "float32")

    def make():
        inputs = keras.Input([10], sparse=True)
        return keras.Model(inputs, keras.layers.Dense(1)(inputs))

    assert_alike(*both(connect(), make), matrix, y)


def test_an_optional_input_may_be_missing(connect):
    class Sum(keras.layers.Layer):
        def call(self, a, b=None):
            return a if b is None else a + b

        def compute_output_shape(self, a_shape, b_shape=None):
            return a_shape

    def make():
        a, b = keras.Input([8], name="a"), keras.Input([8], name="b", optional=True)
        return keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(Sum()(a, b)))

    x, y = regression(64)
    assert_alike(*both(connect(), make), {"a": x, "b": None}, y)
    assert_alike(*both(connect(), make), {"a": x, "b": 2 * x}, y)


def test_float16_without_weights(connect):
    keras.config.set_dtype_policy("mixed_float16")
    x, _ = regression(64)

    def make():
        return keras.Sequential([keras.Input([8]), keras.layers.Rescaling(2.0)])

    assert_alike(*both(connect(), make), x, x, rtol=1e-3)


@pytest.fixture
def limits():
    yield
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


def test_limits_of_the_configuration(connect, limits):
    x, y = regression(64)
    trainer, reference = both(connect(), mlp)
    keras.config.set_max_epochs(2)
    keras.config.set_max_steps_per_epoch(3)
    with pytest.warns(UserWarning, match="Limiting"):
        mine = trainer.fit(x, y, batch_size=8, epochs=5, shuffle=False, verbose=0)
        theirs = reference.fit(x, y, batch_size=8, epochs=5, shuffle=False, verbose=0)
    assert mine.epoch == theirs.epoch == [0, 1]
    np.testing.assert_allclose(mine.history["loss"], theirs.history["loss"], rtol=1e-5)
    assert int(trainer.model.optimizer.iterations) == 6
    assert relative_error(trainer.model, reference) < 1e-5
    keras.config.set_max_steps_per_epoch(2)
    with pytest.warns(UserWarning, match="Limiting"):
        mine, theirs = (one.predict(x, batch_size=8, verbose=0) for one in (trainer, reference))
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


class Lengths(keras.Model):
    """Its outputs are as long as its inputs, or ragged."""

    def __init__(self, ragged):
        super().__init__()
        self.ragged = ragged

    def call(self, x):
        if self.ragged:
            return tf.RaggedTensor.from_tensor(x, padding=0.0)
        return 2.0 * x


@pytest.mark.parametrize("ragged", [False, True])
def test_predictions_of_differing_length(connect, ragged):
    batches = [np.arange(1, 1 + 4 * n, dtype="float32").reshape(4, n) for n in (3, 5, 4)]
    batches[1][0, 2:] = 0.0

    def data():
        yield from batches

    made = tf.data.Dataset.from_generator(
        data, output_signature=tf.TensorSpec([None, None], tf.float32)
    )
    trainer, reference = both(connect(2), lambda: Lengths(ragged))
    mine, theirs = (one.predict(made, verbose=0) for one in (trainer, reference))
    assert isinstance(mine, tf.RaggedTensor)
    assert mine.to_list() == theirs.to_list()


STATS = {
    "examples_per_second",
    "steps_per_second",
    "staleness",
    "staleness_max",
    "push_bytes_per_step",
    "pull_bytes_per_step",
    "workers",
    "lost_workers",
    "lost_ps",
    "refused_pushes",
    "repeated_units",
    "lost_residuals",
}


def test_stats_are_in_logs_if_wanted(connect, tmp_path):
    x, y = regression(64)
    model = mlp()
    model.compile("sgd", "mse")
    strategy = connect()
    for log_stats in (False, True):
        trainer = tfps.Trainer(model, strategy, log_stats=log_stats)
        history = trainer.fit(x, y, epochs=2, verbose=0).history
        assert set(history) == {"loss", *(STATS if log_stats else ())}
        assert set(trainer.stats) == STATS
        assert all(len(values) == 2 for values in trainer.stats.values())
        for name in STATS & set(history):
            assert history[name] == trainer.stats[name]


def test_a_last_batch_of_another_shape_is_part_of_its_call(connect):
    """Calls, and so hooks of batches, are as many as in Keras."""
    x, y = regression(36)
    trainer, reference = both(connect(), mlp, steps_per_execution=8)
    seen: list = [[], []]
    for hooks, one in zip(seen, (trainer, reference), strict=True):
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs, hooks=hooks: hooks.append(batch),
            on_train_batch_end=lambda batch, logs, hooks=hooks: hooks.append((batch, *logs)),
        )
        one.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[callback])
    assert seen[0] == seen[1]
    assert_alike(trainer, reference, x, y)


def test_grouped_convolutions_without_compilation(connect):
    """Keras compiles them by itself, because processors have no other kernel for them."""

    def make():
        inputs = keras.Input([4, 4, 4, 4])
        x = keras.layers.Conv3D(6, 2, groups=2)(inputs)
        return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x)))

    x = np.random.default_rng(0).normal(size=(24, 4, 4, 4, 4)).astype("float32")
    y = x.mean(axis=(1, 2, 3, 4))[:, None]
    assert_alike(*both(connect(), make, jit_compile=False), x, y, rtol=1e-4)


def test_another_model_trains_in_a_hook_of_a_batch(connect):
    x, y = regression(48)
    strategy, trained = connect(), []
    for run in ("tfps", "keras"):
        models = [mlp(), mlp(units=8)]
        for model in models:
            model.compile(keras.optimizers.SGD(0.05), "mse")
        outer, inner = models
        if run == "tfps":
            outer, inner = (tfps.Trainer(model, strategy) for model in models)

        def hook(batch, logs, inner=inner):
            inner.fit(x, y, batch_size=16, shuffle=False, verbose=0)

        callback = keras.callbacks.LambdaCallback(on_train_batch_end=hook)
        outer.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[callback])
        trained.append(models)
    for mine, theirs in zip(*trained, strict=True):
        assert relative_error(mine, theirs) < 1e-5


class Centered(keras.layers.Layer):
    """Subtracts a running mean, which it assigns before it reads it."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 8))
        self.mean = self.add_weight(shape=(8,), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        y = keras.ops.matmul(x, self.kernel)
        if training:
            self.mean.assign(0.5 * self.mean + 0.5 * keras.ops.mean(y, axis=0))
        return y - self.mean


def test_no_gradient_goes_through_an_assigned_variable(connect):
    def make():
        return keras.Sequential([keras.Input([8]), Centered(), keras.layers.Dense(1)])

    assert_alike(*both(connect(), make), *regression(64))


class Reordered(keras.utils.PyDataset):
    """Draws another order of its batches whenever an epoch ends."""

    def __init__(self, x, y, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y, self.hooks = x, y, []
        self.rng, self.order = np.random.default_rng(0), np.arange(len(x) // 16)

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        rows = slice(16 * self.order[index], 16 * self.order[index] + 16)
        return self.x[rows], self.y[rows]

    def on_epoch_begin(self):
        self.hooks.append("begin")

    def on_epoch_end(self):
        self.hooks.append("end")
        self.rng.shuffle(self.order)


def test_a_dataset_that_reorders_itself(connect):
    x, y = regression(64)
    trained = both(connect(), mlp)
    losses, hooks = [], []
    for one in trained:
        data, validation = Reordered(x, y, workers=2), Reordered(x, y)
        args = {"epochs": 2, "shuffle": False, "verbose": 0, "validation_data": validation}
        losses.append(one.fit(data, **args).history["loss"])
        one.evaluate(data, verbose=0)
        one.predict(data, verbose=0)
        hooks.append((data.hooks, validation.hooks))
    assert hooks[0] == hooks[1]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert relative_error(trained[0].model, trained[1]) < 1e-5
