"""Steps, logs and states of the user's own, against plain Keras on the same batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error

o = keras.optimizers
soak = pytest.mark.soak
ARGS = {"batch_size": 8, "shuffle": False, "verbose": 0}


def compiled(model, optimizer=None, **compile_args):
    model.compile(optimizer or o.SGD(0.01), "mse", **compile_args)
    return model


def test_a_step_of_the_instance_reads_a_metric(connect):
    strategy = connect()
    x, y = regression(32)

    def made():
        model = compiled(mlp())

        def train_step(data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = model.compute_loss(x, y, model(x, training=True))
            tracker = model.metrics[0]
            tracker.update_state(loss)
            mean = tracker.result()
            gradients = tape.gradient(loss, model.trainable_variables)
            gradients = [g * (loss / mean) for g in gradients]
            model.optimizer.apply(gradients, model.trainable_variables)
            return {"loss": mean}

        model.train_step = train_step
        return model

    model, reference = made(), made()
    tfps.Trainer(model, strategy).fit(x, y, **ARGS)
    reference.fit(x, y, **ARGS)
    assert relative_error(model, reference) < 1e-6


class OwnTest(keras.Sequential):
    """Returns the loss of a batch, and how it compares with the mean."""

    names = ("loss",)

    def test_step(self, data):
        x, y = data
        loss = self.compute_loss(x, y, self(x, training=False))
        self._loss_tracker.update_state(loss)
        logs = {"loss": loss, "ratio": loss / self._loss_tracker.result()}
        return {name: logs[name] for name in self.names}


class Ratio(OwnTest):
    """Returns an entry that is computed of a batch and of a metric."""

    names = ("ratio",)


@pytest.mark.parametrize("cls", [pytest.param(OwnTest, marks=soak), Ratio])
def test_logs_of_an_own_test_step(connect, cls):
    strategy = connect()
    x, y = regression(32)

    def evaluated(through):
        model = compiled(cls(mlp().layers))
        arguments = {"batch_size": 8, "verbose": 0, "return_dict": True}
        return through(model).evaluate(x, y, **arguments)

    mine = evaluated(lambda model: tfps.Trainer(model, strategy))
    theirs = evaluated(lambda model: model)
    assert mine == pytest.approx(theirs, rel=1e-5)


class Two(keras.Sequential):
    """Its two layers have an optimizer each."""

    def train_step(self, data):
        x, y = data
        groups = [layer.trainable_variables for layer in self.layers]
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
            losses = [one.scale_loss(loss) for one in self.each]
        for one, scaled, mine in zip(self.each, losses, groups, strict=True):
            one.apply(tape.gradient(scaled, mine), mine)
        return {"loss": loss}


@pytest.mark.parametrize(
    "factors", [(1024.0, None), *(pytest.param(f, marks=soak) for f in [(None, 512.0), (8.0, 2.0)])]
)
def test_each_optimizer_has_a_loss_scale_factor_of_its_own(connect, factors):
    strategy = connect()
    x, y = regression(16)

    def made():
        model = Two(mlp().layers)
        model.each = [o.SGD(0.01, loss_scale_factor=factor) for factor in factors]
        return compiled(model)

    model, reference = made(), made()
    tfps.Trainer(model, strategy).fit(x, y, **ARGS)
    reference.fit(x, y, **ARGS)
    assert relative_error(model, reference) < 1e-5


class OwnLogs(keras.Sequential):
    """Logs the loss of a batch without a metric, or a metric's result, as `returns` says."""

    returns = "batch"

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        if self.returns == "batch":
            return {"loss": loss, "norm": tf.linalg.global_norm(gradients)}
        self._loss_tracker.update_state(loss)
        return {"loss": self._loss_tracker.result(), "norm": tf.linalg.global_norm(gradients)}


@pytest.mark.filterwarnings("ignore:the model was compiled with run_eagerly")
@pytest.mark.parametrize("returns", ["batch", pytest.param("metric", marks=soak)])
def test_logs_of_an_own_step_that_runs_eagerly(connect, returns):
    strategy = connect()
    x, y = regression(32)

    def made():
        model = compiled(OwnLogs(mlp().layers), run_eagerly=True)
        model.returns = returns
        return model

    mine = tfps.Trainer(made(), strategy).fit(x, y, **ARGS).history
    theirs = made().fit(x, y, **ARGS).history
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        assert mine[name] == pytest.approx(values, rel=1e-5), name


class Largest(keras.metrics.Metric):
    """The largest error."""

    def __init__(self):
        super().__init__(name="largest")
        self.value = self.add_weight(name="value", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(tf.maximum(self.value, tf.reduce_max(tf.abs(y_true - y_pred))))

    def result(self):
        return 1.0 * self.value  # Not the variable itself, whose value may change.


@pytest.mark.filterwarnings("ignore:the model was compiled with run_eagerly")
@pytest.mark.filterwarnings("error:The metric state")
def test_workers_of_a_model_that_runs_eagerly_share_any_metric(connect):
    x, y = regression(40)
    validation = x[:24], 2 * y[:24]
    found = []
    for run in ("tfps", "keras"):
        model = compiled(mlp(), o.SGD(0.0), metrics=["mae", Largest()], run_eagerly=True)
        one = tfps.Trainer(model, connect(2)) if run == "tfps" else model
        history = one.fit(x, y, epochs=2, validation_data=validation, **ARGS).history
        found.append([*history.values(), one.evaluate(x, -y, batch_size=8, verbose=0)])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def rnn(cls=keras.Model, **compile_args):
    """A stateful RNN, whose states the model does not list."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(batch_shape=[8, 3, 8])
    hidden = keras.layers.SimpleRNN(3, stateful=True)(inputs)
    model = cls(inputs, keras.layers.Dense(1)(hidden))
    return compiled(model, o.SGD(0.0), **compile_args)


def sequences():
    x, y = regression(32)
    return np.stack([x, 2 * x, x / 2], 1), y


class Resetting(keras.callbacks.Callback):
    """Resets the states of the RNN after batches; notes what they are after an epoch."""

    def __init__(self, last=None):
        super().__init__()
        self.last, self.seen = last, []

    def _reset(self, batch):
        if self.last in (None, batch):
            self.model.layers[1].reset_state()

    def on_train_batch_end(self, batch, logs=None):
        self._reset(batch)

    on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.model.layers[1].states[0].numpy())


def test_states_that_hooks_of_batches_reset(connect):
    strategy = connect()
    x, y = sequences()
    model, reference = rnn(), rnn()
    trainer = tfps.Trainer(model, strategy)
    arguments = {"batch_size": 8, "verbose": 0}
    for _ in range(2):
        mine, theirs = (
            one.evaluate(x, y, callbacks=[Resetting()], **arguments) for one in (trainer, reference)
        )
        assert mine == pytest.approx(theirs, rel=1e-5)
        mine, theirs = (
            one.predict(x, callbacks=[Resetting()], **arguments) for one in (trainer, reference)
        )
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    mine, theirs = Resetting(last=3), Resetting(last=3)
    history, expected = (
        one.fit(x, y, validation_data=(x, y), callbacks=[callback], epochs=2, **ARGS).history
        for one, callback in ((trainer, mine), (reference, theirs))
    )
    np.testing.assert_allclose(mine.seen, theirs.seen, rtol=1e-4, atol=1e-6)
    for name, values in expected.items():
        assert history[name] == pytest.approx(values, rel=1e-5), name


class OwnPredict(keras.Model):
    """Predicts in a step of its own."""

    def predict_step(self, data):
        return self(data[0] if isinstance(data, tuple) else data, training=False)


class OwnEvaluate(keras.Model):
    """Evaluates in a step of its own."""

    def test_step(self, data):
        x, y = data
        self._loss_tracker.update_state(self.compute_loss(x, y, self(x, training=False)))
        return {"loss": self._loss_tracker.result()}


@pytest.mark.filterwarnings("ignore:the model was compiled with run_eagerly")
@pytest.mark.parametrize(
    ("cls", "eager"),
    [(OwnPredict, False), pytest.param(OwnEvaluate, False, marks=soak), (keras.Model, True)],
)
def test_states_are_kept_before_any_fit(connect, cls, eager):
    strategy = connect()
    x, y = sequences()
    arguments = {"batch_size": 8, "verbose": 0}
    made = [rnn(cls, run_eagerly=eager) for _ in range(2)]
    mine, theirs = tfps.Trainer(made[0], strategy), made[1]
    assert mine.evaluate(x, y, **arguments) == pytest.approx(theirs.evaluate(x, y, **arguments))
    made = [rnn(cls, run_eagerly=eager) for _ in range(2)]
    mine, theirs = tfps.Trainer(made[0], strategy), made[1]
    np.testing.assert_allclose(
        mine.predict(x, **arguments), theirs.predict(x, **arguments), rtol=1e-4, atol=1e-6
    )
