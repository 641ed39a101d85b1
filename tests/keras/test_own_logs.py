"""What own steps return: logs of several workers, of evaluation and prediction, and noise."""

# ruff: noqa: B905

import keras
import numpy as np
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tests.keras.beside_keras import fit_both, sequential
from tests.keras.test_own_steps import vae

o = keras.optimizers


def test_results_are_of_all_workers_together(connect):
    strategy = connect(2)
    x = regression(160)[0]
    model = vae()
    model.optimizer.learning_rate = 0.0
    trainer = tfps.Trainer(model, strategy)
    mine = trainer.fit(x, batch_size=16, verbose=0).history
    reference = vae()
    reference.set_weights(model.get_weights())
    reference.optimizer.learning_rate = 0.0
    theirs = reference.fit(x, batch_size=16, verbose=0).history
    for name in ("loss", "kl_loss"):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5)


class Distiller(keras.Model):
    """A student that learns from a frozen teacher, with a `test_step` of its own."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def compile(self, optimizer, metrics, student_loss, distillation_loss):
        super().compile(optimizer=optimizer, metrics=metrics, jit_compile=False)
        self.student_loss, self.distillation_loss = student_loss, distillation_loss

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        teacher = self.teacher(x, training=False)
        return 0.3 * self.student_loss(y, y_pred) + 0.7 * self.distillation_loss(teacher, y_pred)

    def call(self, x):
        return self.student(x)

    def train_step(self, data):
        x, y = data
        teacher = self.teacher(x, training=False)
        with tf.GradientTape() as tape:
            y_pred = self.student(x, training=True)
            student = self.student_loss(y, y_pred)
            loss = 0.3 * student + 0.7 * self.distillation_loss(teacher, y_pred)
        variables = self.student.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        self._compile_metrics.update_state(y, y_pred)
        results = self.get_metrics_result()
        results.update({"student_loss": student})
        return results

    def test_step(self, data):
        x, y = data
        y_pred = self.student(x, training=False)
        self._compile_metrics.update_state(y, y_pred)
        return {**self.get_metrics_result(), "student_loss": self.student_loss(y, y_pred)}


def distiller():
    model = Distiller(mlp(units=4), mlp(units=16))
    model.compile(o.Adam(1e-2), ["mae"], keras.losses.MeanSquaredError(), keras.losses.Huber())
    return model


def test_distillation_and_own_test_step(connect):
    x, y = regression(160)
    mine, theirs = fit_both(
        connect, distiller, x, y, validation_data=(x[:48], y[:48]), validation_batch_size=16
    )
    expected = theirs.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    trainer = tfps.Trainer(mine, connect())
    got = trainer.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4)


class OwnPredict(keras.Sequential):
    """Returns a structure of its own."""

    def predict_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        return {"y": self(x, training=False), "x": x}


def test_own_predict_step(connect):
    strategy = connect(2)
    x, _ = regression(80)
    model = sequential(OwnPredict)()
    mine = tfps.Trainer(model, strategy).predict(x, batch_size=16, verbose=0)
    theirs = model.predict(x, batch_size=16, verbose=0)
    np.testing.assert_array_equal(mine["x"], x)
    np.testing.assert_allclose(mine["y"], theirs["y"], rtol=1e-5)


class OwnMetrics(keras.Sequential):
    """Adds to what `compute_metrics` returns."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = keras.metrics.Sum(name="seen")

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        self.seen.update_state(keras.ops.ones_like(y))
        return {**results, "seen": self.seen.result(), "tenth": self.seen.result() / 10}


def test_what_compute_metrics_returns_is_logged(connect):
    x, y = regression(160)
    mine, _ = fit_both(connect, sequential(OwnMetrics), x, y, validation_data=(x, y))
    assert mine.history.history["tenth"] == [16.0, 16.0]


class Noisy(keras.layers.Layer):
    """Monte Carlo dropout: it draws in evaluation and prediction, too."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(x, training=True)


def test_noise_differs_by_batch_and_call_and_trainer(connect):
    strategy = connect(2)
    model = keras.Sequential([keras.Input([8]), Noisy()])
    model.compile("sgd", "mse", jit_compile=False)
    x = np.ones((64, 8), "float32")
    drawn, losses = [], []
    for _ in range(2):
        trainer = tfps.Trainer(model, strategy)
        for _ in range(2):
            drawn += np.split(trainer.predict(x, batch_size=16, verbose=0), 4)
            losses.append(trainer.evaluate(x, 0 * x, batch_size=16, verbose=0))
    assert len({batch.tobytes() for batch in drawn}) == len(drawn)
    assert len(set(losses)) == len(losses)
    before = model.predict(x, verbose=0)
    tfps.Trainer(model, strategy).predict(x, verbose=0)
    assert not np.array_equal(before, model.predict(x, verbose=0))
