"""What every worker has of its own: metrics whose state is no sum, and the states of RNNs."""

import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tfps import errors
from tfps.training.own_state import OwnState

ops = keras.ops
soak = pytest.mark.soak

# (policy, overlap, steps a call)
WAYS = {
    "async": (tfps.Async(), 0, 1),
    "async, 3 steps a call": (tfps.Async(), 0, 3),
    "overlap 2, 3 steps a call": (tfps.Async(), 2, 3),
    "prefetch": (tfps.Async(), 1, 1),
    "sync": (tfps.Sync(), 0, 1),
    "local": (tfps.LocalSteps(3, keras.optimizers.SGD(1.0), "each"), 0, 1),
    "local, rounds": (tfps.LocalSteps(3, keras.optimizers.SGD(1.0)), 0, 1),
}


def ways(few):
    """A mark: the test runs in one way, and in a soak in all; what is carried is the same."""
    return pytest.mark.parametrize(
        "way", [pytest.param(w, marks=[] if w == few else soak) for w in WAYS]
    )


class Largest(keras.Metric):
    """The largest target; the smallest; a moving average; and how many batches there were."""

    def __init__(self, name="largest"):
        super().__init__(name=name)
        self.largest = self.add_weight((), "zeros", name="largest")
        self.smallest = self.add_weight((), "zeros", name="smallest")
        self.average = self.add_variable((), "zeros", aggregation="mean", name="average")
        self.batches = self.add_weight((), "zeros", "int32", "batches")

    def update_state(self, y, p, sample_weight=None):
        self.largest.assign(ops.maximum(self.largest, ops.max(y)))
        self.smallest.assign(ops.where(ops.min(y) < self.smallest, ops.min(y), self.smallest))
        self.average.assign(0.5 * self.average + 0.5 * ops.mean(y))
        self.batches.assign_add(1)

    def reset_state(self):
        self.largest.assign(-np.inf)
        self.smallest.assign(np.inf)
        self.average.assign(0.0)
        self.batches.assign(0)

    def result(self):
        # Keras itself would log a variable as it is later, after validation.
        return {v.name: v + 0 for v in self.variables}


class Latest(keras.Metric):
    """The target of the last batch."""

    def __init__(self, name="latest"):
        super().__init__(name=name)
        self.latest = self.add_weight((), "zeros", name="latest")

    def update_state(self, y, p, sample_weight=None):
        self.latest.assign(ops.sum(y))

    def result(self):
        return self.latest + 0.0


class Merged(Latest):
    """The latest target of each worker, and the largest of these."""

    def merge_state(self, metrics):
        for metric in metrics:
            self.latest.assign(ops.maximum(self.latest, metric.latest))


def fitted(model, x, y, trainer=None, **arguments):
    fit = (trainer or model).fit
    return fit(x, y, batch_size=10, shuffle=False, verbose=0, **arguments).history


def compiled(*metrics, steps=1, rate=0.05):
    model = mlp()
    model.compile(
        keras.optimizers.SGD(rate), "mse", metrics=list(metrics), steps_per_execution=steps
    )
    return model


class Seen(keras.callbacks.Callback):
    """Notes the logs after every batch."""

    reads_weights = False

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


@ways("prefetch")
def test_one_worker_has_the_metrics_of_keras(connect, way):
    policy, overlap, steps = WAYS[way]
    x, y = regression(100)
    mine, theirs = (compiled("mae", Largest(), Latest(), steps=steps) for _ in range(2))
    trainer = tfps.Trainer(mine, connect(workers=1), policy, overlap=overlap)
    args = {"epochs": 2, "validation_data": (x[:50], y[:50] * 2)}
    ours = fitted(mine, x, y, trainer, **args)
    expected = fitted(theirs, x, y, **args)
    for name in expected:
        # A step of overlap misses an update, which changes the loss but no target.
        if not overlap or ("loss" not in name and "mae" not in name):
            np.testing.assert_allclose(ours[name], expected[name], rtol=1e-4, err_msg=name)
    metrics = {v.path: v.numpy() for v in mine.metrics_variables if "la" in v.path}
    for v in [v for v in theirs.metrics_variables if v.path in metrics]:
        np.testing.assert_allclose(metrics[v.path], v.numpy(), rtol=1e-4)


def test_hooks_of_batches_see_them_too(connect):
    x, y = regression(60)
    seen = Seen(), Seen()
    mine, theirs = compiled(Largest()), compiled(Largest())
    fitted(mine, x, y, tfps.Trainer(mine, connect(workers=1)), callbacks=[seen[0]])
    fitted(theirs, x, y, callbacks=[seen[1]])
    assert len(seen[0].logs) == 6
    for ours, expected in zip(seen[0].logs, seen[1].logs, strict=True):
        for name in expected:
            np.testing.assert_allclose(ours[name], expected[name], rtol=1e-4, err_msg=name)


def dealt(x, y):
    """Each worker's half of the data."""

    def dataset(context):
        mine = slice(context.worker_index, None, context.num_workers)
        return tf.data.Dataset.from_tensor_slices((x[mine], y[mine])).batch(10)

    return dataset


@pytest.mark.parametrize("policy", [pytest.param(tfps.Async(), marks=soak), tfps.Sync()])
def test_several_workers_compare_and_add(connect, policy):
    x, y = regression(100)
    model = compiled(Largest())
    trainer = tfps.Trainer(model, connect(workers=2), policy)
    logs = trainer.fit(dealt(x, y), epochs=2, verbose=0, validation_data=dealt(x, y)).history

    def average(mine):
        value = 0.0
        for batch in np.split(mine, 5):
            value = 0.5 * value + 0.5 * batch.mean()
        return value

    for prefix in ("", "val_"):
        np.testing.assert_allclose(logs[f"{prefix}largest"], [y.max()] * 2, rtol=1e-6)
        np.testing.assert_allclose(logs[f"{prefix}smallest"], [y.min()] * 2, rtol=1e-6)
        assert logs[f"{prefix}batches"] == [10, 10]
        mean = np.mean([average(y[w::2]) for w in range(2)])
        np.testing.assert_allclose(logs[f"{prefix}average"], [mean] * 2, rtol=1e-5)


def test_a_metric_merges_its_states_by_itself(connect):
    x, y = regression(100)
    model = compiled(Merged())
    logs = tfps.Trainer(model, connect(workers=2)).fit(dealt(x, y), verbose=0).history
    last = [y[w::2][-10:].sum() for w in range(2)]
    np.testing.assert_allclose(logs["latest"], [max(last)], rtol=1e-5)
    variable = model.metrics[1].metrics[0].latest
    np.testing.assert_allclose(variable.numpy(), max(last), rtol=1e-5)


def test_other_states_are_warned_of(connect):
    x, y = regression(100)
    model = compiled(Latest())
    trainer = tfps.Trainer(model, connect(workers=2))
    with pytest.warns(UserWarning, match=r"latest/latest is no sum, maximum or minimum.*2 workers"):
        trainer.fit(x, y, batch_size=10, verbose=0)


# Stateful RNNs.

BATCH = 4


def sequences(batches):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batches * BATCH, 3, 2)).astype("float32")
    return x, x.sum((1, 2))[:, None]


def lstm(layer=keras.layers.LSTM, steps=1, rate=0.05):
    keras.utils.set_random_seed(1)
    inputs = keras.Input(batch_shape=(BATCH, 3, 2))
    x = layer(5, stateful=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(rate), "mse", steps_per_execution=steps)
    return model


def states(model):
    return [v.numpy() for v in model.layers[1].states]


def assert_alike(mine, theirs, rtol=2e-4):
    for ours, expected in zip(states(mine), states(theirs), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=rtol, atol=1e-5)
    assert relative_error(mine, theirs) < 1e-4


@ways("sync")
def test_one_worker_carries_the_states_as_keras_does(connect, way):
    policy, overlap, steps = WAYS[way]
    rate = 0.0 if overlap else 0.05  # Overlap misses updates, but no states.
    x, y = sequences(7)
    mine, theirs = (lstm(steps=steps, rate=rate) for _ in range(2))
    trainer = tfps.Trainer(mine, connect(workers=1), policy, overlap=overlap)
    args = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    for _ in range(2):  # What one `fit` leaves, the next one begins with.
        validation = {"validation_data": (x[:8], y[:8]), "validation_batch_size": BATCH}
        ours = trainer.fit(x, y, epochs=2, **args, **validation).history
        expected = theirs.fit(x, y, epochs=2, **args, **validation).history
        for name in expected:
            np.testing.assert_allclose(ours[name], expected[name], rtol=1e-3)
        assert_alike(mine, theirs)
    assert np.abs(states(mine)[0]).max() > 0.01


@pytest.mark.parametrize(
    "layer", [keras.layers.GRU, pytest.param(keras.layers.SimpleRNN, marks=soak)]
)
def test_evaluate_and_predict_carry_them(connect, layer):
    x, y = sequences(5)
    mine, theirs = lstm(layer), lstm(layer)
    trainer = tfps.Trainer(mine, connect(workers=1))
    args = {"batch_size": BATCH, "verbose": 0}
    for _ in range(2):
        np.testing.assert_allclose(
            trainer.evaluate(x, y, **args), theirs.evaluate(x, y, **args), 1e-4
        )
        np.testing.assert_allclose(
            trainer.predict(x, **args), theirs.predict(x, **args), rtol=1e-4, atol=1e-5
        )
        assert_alike(mine, theirs)


class Reset(keras.callbacks.Callback):
    """Resets the states at one kind of hook."""

    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self.reset)

    def reset(self, number, logs=None):
        if number % 2:
            self.model.layers[1].reset_state()


@pytest.mark.parametrize(
    "hook",
    [
        "on_epoch_end",
        "on_train_batch_begin",
        pytest.param("on_epoch_begin", marks=soak),
        pytest.param("on_train_batch_end", marks=soak),
    ],
)
def test_callbacks_reset_them(connect, hook):
    x, y = sequences(5)
    mine, theirs = lstm(), lstm()
    args = {"epochs": 3, "batch_size": BATCH, "shuffle": False, "verbose": 0}
    trainer = tfps.Trainer(mine, connect(workers=1))
    trainer.fit(x, y, callbacks=[Reset(hook)], **args)
    theirs.fit(x, y, callbacks=[Reset(hook)], **args)
    assert_alike(mine, theirs)
    mine.layers[1].reset_state()
    theirs.layers[1].reset_state()
    trainer.fit(x, y, **args)
    theirs.fit(x, y, **args)
    assert_alike(mine, theirs)


def test_every_worker_has_its_own(connect):
    """With a rate of 0, each worker goes through its own sequences."""
    x, y = sequences(8)

    def dataset(context):
        mine = slice(context.worker_index * 4 * BATCH, (context.worker_index + 1) * 4 * BATCH)
        data = tf.data.Dataset.from_tensor_slices((x[mine], y[mine]))
        return data.batch(BATCH, drop_remainder=True)

    model = lstm(rate=0.0)
    trainer = tfps.Trainer(model, connect(workers=2))
    trainer.fit(dataset, epochs=2, verbose=0)
    alone = []
    for w in range(2):
        reference = lstm(rate=0.0)
        mine = slice(w * 4 * BATCH, (w + 1) * 4 * BATCH)
        reference.fit(
            x[mine], y[mine], epochs=2, batch_size=BATCH, shuffle=False, verbose=0
        )  # fmt: skip
        alone.append(states(reference))
    for w, own in enumerate(trainer.state.own.each):
        for ours, expected in zip(own.unlisted, alone[w], strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    for ours, expected in zip(states(model), alone[0], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    with pytest.warns(UserWarning, match="each of 2 workers has its own"):
        trainer.predict(x, batch_size=BATCH, verbose=0)


def test_the_training_state_has_them(connect):
    x, y = sequences(5)
    args = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    models = lstm(), lstm(), lstm()
    trainer = tfps.Trainer(models[0], connect(workers=1))
    trainer.fit(x, y, epochs=1, **args)
    exported = trainer.state.export()
    other = tfps.Trainer(models[1], connect(workers=1))
    other.state.restore(exported)
    other.fit(x, y, epochs=3, **args)
    models[2].fit(x, y, epochs=3, **args)
    assert_alike(models[1], models[2])


def test_of_a_worker_that_is_lost_meanwhile_the_last_values_stay():
    lost: list[Exception] = []

    def asked(function, workers):
        assert workers == [0]
        raise lost[-1]

    own = OwnState.__new__(OwnState)
    own._replacements, own._copied = {}, ["the last values"]
    own._calls = types.SimpleNamespace(living={0}, ask=asked)
    own.each = [types.SimpleNamespace(unlisted=["on the worker"])]
    lost.append(errors.TaskLost("worker 0 no longer answers"))
    assert own._following(0) == ["the last values"]
    lost.append(tf.errors.UnavailableError(None, None, "failed to connect"))
    assert own._following(0) == ["the last values"]
    lost.append(tf.errors.InvalidArgumentError(None, None, "something else"))
    with pytest.raises(tf.errors.InvalidArgumentError):
        own._following(0)


def test_a_model_may_leave_the_loss_out_of_its_metrics(connect):
    """Keras's mean of the loss is then in no list, and still no state that a batch needs."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        @property
        def metrics(self):
            return []

    model = Own()
    model.compile("sgd", "mse")
    x, y = regression(32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The model keeps")
        tfps.Trainer(model, connect(workers=2)).fit(x, y, batch_size=8, verbose=0)
