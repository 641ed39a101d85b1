"""What programs do between and within steps. The reference is Keras on the same batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps import _keras_optimizers

_X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
_Y = _X.sum(1, keepdims=True)


def _model(loss="mse"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return model


@tf.function(input_signature=[tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.float32)])
def _quotient(n, by=2):
    return tf.ones([], n.dtype) * n / by


@tf.function
def _coefficient():
    return {"a": 0.5, "b": None}


@tf.function
def _length(parts):
    return tf.cast(parts["w"].get_shape()[0], parts["w"].dtype)


_FACTORS = {
    "signature": lambda: _quotient(3),
    "result": lambda: tf.cast(_coefficient()["a"], _coefficient()["a"].dtype),
    "array": lambda: _length({"w": np.ones(3, "float32")}),
}


@pytest.mark.parametrize("name", _FACTORS)
def test_functions_in_a_model_take_and_return_what_tensorflow_makes_of_values(name, connect):
    def loss(y, p):
        return _FACTORS[name]() * tf.reduce_mean((y - p) ** 2)

    expected = _model(loss).fit(_X, _Y, batch_size=8, shuffle=False, verbose=0).history
    trainer = tfps.Trainer(_model(loss), connect())
    history = trainer.fit(_X, _Y, batch_size=8, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)


def test_a_schedule_assigned_after_the_first_fit_is_in_force_at_the_next(connect):
    """Keras itself takes it on when the step is traced again."""
    weights = {}
    for run in ("keras", "tfps"):
        model = _model()
        fit = model.fit if run == "keras" else tfps.Trainer(model, connect()).fit
        during = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, model=model: setattr(
                model.optimizer, "learning_rate", _schedule(0.02)
            )
        )
        # An assignment during `fit` leaves the rate of this `fit` alone, in the second epoch too.
        fit(_X, _Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[during])
        weights[run] = model.get_weights()
        for rate in (None, 0.1):
            if rate is not None:
                model.optimizer.learning_rate = _schedule(rate)
            if run == "keras":
                model.make_train_function(force=True)
            fit(_X, _Y, batch_size=8, shuffle=False, verbose=0)
            weights[run] += model.get_weights()
        assert int(model.optimizer.iterations) == 16
    for mine, theirs in zip(weights["tfps"], weights["keras"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_schedule_assigned_before_the_first_batch_is_in_force_at_once(connect):
    """Keras traces the step with the first batch, after `on_train_begin`."""
    weights, losses = {}, {}
    for run in ("keras", "tfps"):
        model = _model()
        fit = model.fit if run == "keras" else tfps.Trainer(model, connect()).fit

        def assign(logs=None, model=model):
            model.optimizer.learning_rate = _schedule(0.1)
            model.layers[0].bias.assign([0.5])  # What a hook assigns besides is kept.

        begins = keras.callbacks.LambdaCallback(on_train_begin=assign)
        arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
        losses[run] = fit(_X, _Y, callbacks=[begins], **arguments).history["loss"]
        assert int(model.optimizer.iterations) == 8
        fit(_X, _Y, **arguments)  # Slots go on.
        weights[run] = model.get_weights()
    np.testing.assert_allclose(losses["tfps"], losses["keras"], rtol=1e-4)
    for mine, theirs in zip(weights["tfps"], weights["keras"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def _schedule(rate):
    return keras.optimizers.schedules.ExponentialDecay(rate, 4, 0.8)


class Two(keras.Model):
    """Two optimizers in one step, and one that the step only looks at."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(1)
        self.one, self.other = keras.layers.Dense(1), keras.layers.Dense(1)
        self.optimizers = [keras.optimizers.SGD(0.01), keras.optimizers.Adam(0.01)]
        self.idle = keras.optimizers.SGD(0.01)
        for optimizer, count in zip([*self.optimizers, self.idle], (5, 100, 7), strict=True):
            optimizer.iterations.assign(count)

    def call(self, x):
        return self.one(x) + self.other(x)

    def train_step(self, data):
        x, y = data
        # Before the step's own updates, where Keras has what was pulled here.
        logs = {
            name: tf.cast(one.iterations, tf.float32)
            for name, one in zip("abc", [*self.optimizers, self.idle], strict=True)
        }
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        for layer, optimizer in zip((self.one, self.other), self.optimizers, strict=True):
            weights = layer.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
        return logs


def test_each_of_several_optimizers_has_its_own_iterations_in_a_step(connect):
    histories = []
    for run in ("keras", "tfps"):
        model = Two()
        model.compile(keras.optimizers.SGD(0.01), "mse")
        model(_X[:1])
        fit = model.fit if run == "keras" else tfps.Trainer(model, connect()).fit
        history = fit(_X, _Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        histories.append({name: history[name] for name in "abc"})
        assert [int(one.iterations) for one in model.optimizers] == [13, 108]
    assert histories[0] == histories[1] == {"a": [8, 12], "b": [103, 107], "c": [7, 7]}


def test_a_metric_may_show_the_learning_rate(connect):
    histories = []
    for run in ("keras", "tfps"):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Dense(1)])  # not built yet

        def lr(y, p, model=model):
            return model.optimizer.learning_rate

        model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[lr])
        fit = model.fit if run == "keras" else tfps.Trainer(model, connect()).fit
        falls = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
        args = {"batch_size": 8, "epochs": 3, "verbose": 0, "shuffle": False}
        history = fit(_X, _Y, callbacks=[falls], **args).history
        histories.append([history["lr"], history["loss"]])
    np.testing.assert_allclose(*histories, rtol=1e-5)


class Rate(keras.metrics.Metric):
    """The learning rate of an optimizer, whatever the batches are."""

    def __init__(self, optimizer):
        super().__init__(name="rate")
        self.optimizer = optimizer

    def update_state(self, *args, **kwargs):
        pass

    def result(self):
        return self.optimizer.learning_rate


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.filterwarnings("ignore:the model was compiled with run_eagerly")
def test_a_metric_may_show_the_rate_of_a_schedule(connect, eager):
    histories, seen = [], []
    for run in ("keras", "tfps"):
        keras.utils.set_random_seed(1)
        optimizer = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5))

        def lr(y, p, optimizer=optimizer):
            return optimizer.learning_rate

        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile(optimizer, "mse", metrics=[lr, Rate(optimizer)], run_eagerly=eager)
        rates: list[float] = []
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, rates=rates: rates.append(logs["rate"])
        )
        fit = model.fit if run == "keras" else tfps.Trainer(model, connect()).fit
        args = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False}
        history = fit(_X, _Y, callbacks=[callback], validation_data=(_X, _Y), **args).history
        histories.append([history[name] for name in ("lr", "rate", "loss", "val_lr", "val_rate")])
        seen.append(list(map(float, rates)))
    np.testing.assert_allclose(*histories, rtol=1e-5)
    np.testing.assert_allclose(*seen, rtol=1e-5)


def test_optimizers_are_found_beside_tuples_of_layers():
    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.layers_of_mine = (keras.layers.Dense(1), keras.layers.Dense(1))
            self.optimizers = (keras.optimizers.SGD(), keras.optimizers.Adam())

    model = Pair()
    assert _keras_optimizers.optimizers_of(model) == list(model.optimizers)
