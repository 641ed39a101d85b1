"""Python in the graphs of a model: decorated calls, functions of Python, summaries."""

import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests import warm
from tests.conftest import regression, relative_error

ROOT = pathlib.Path(__file__).parents[2]

o = keras.optimizers
ARGS = {"batch_size": 16, "shuffle": False, "verbose": 0, "epochs": 2}


class Branching(keras.layers.Layer):
    """A decorated `call` with Python's own conditions and loops."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    @tf.function
    def call(self, x):
        if tf.reduce_mean(x) > 0:
            x = 2.0 * x
        for _ in tf.range(2):
            x = x * self.scale
        return x


def python_loss(y, y_pred):
    def squared(y, y_pred):
        return tf.reduce_mean(tf.square(y - y_pred))

    loss = tf.py_function(squared, [y, y_pred], tf.float32)
    loss.set_shape([])
    return loss


def made(loss="mse"):
    keras.utils.set_random_seed(1)
    layers = [keras.Input([8]), keras.layers.BatchNormalization(), Branching()]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile(o.SGD(0.05), loss, jit_compile=False)
    return model


@pytest.mark.parametrize("loss", [pytest.param("mse", marks=pytest.mark.soak), python_loss])
def test_decorated_calls_and_functions_of_python(connect, loss):
    x, y = regression(80)
    strategy = connect()
    model, reference = made(loss), made(loss)
    mine = tfps.Trainer(model, strategy).fit(x, y, validation_data=(x, y), **ARGS).history
    theirs = reference.fit(x, y, validation_data=(x, y), **ARGS).history
    assert relative_error(model, reference) < 1e-5
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5)


PROGRAM = """
import keras, numpy as np, tensorflow as tf, tfps
from tests.keras.test_python_in_graphs import made, python_loss

if {before}:
    tf.zeros([1]).numpy()  # The device has its name from now on.
with tfps.LocalCluster(workers=1, ps=1, processes=True) as cluster:
    strategy = tfps.ParameterServerStrategy(cluster)
    trainer = tfps.Trainer(made(python_loss), strategy, step_timeout=60.0)
    history = trainer.fit(np.ones([32, 8]), np.ones([32, 1]), verbose=0).history
    print("finite", bool(np.isfinite(history["loss"]).all()))
"""


@pytest.mark.processes
@pytest.mark.parametrize("before", [pytest.param(False, marks=pytest.mark.soak), True])
def test_functions_of_python_run_on_the_chief(before, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(before=before))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TFPS_TEST_JOB": "localhost"}
    done = warm.run([str(program)], ROOT, environ, tmp_path)
    assert "finite True" in done.stdout, done.stderr


def test_summaries_of_layers_reach_tensorboard(connect, tmp_path):
    strategy = connect()

    class Summary(keras.layers.Layer):
        def call(self, x):
            tf.summary.scalar("mean_of_x", tf.reduce_mean(x), step=0)
            return x

    x, y = regression(64)
    model = keras.Sequential([keras.Input([8]), Summary(), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    board = keras.callbacks.TensorBoard(tmp_path, update_freq=1)
    tfps.Trainer(model, strategy).fit(x, y, batch_size=16, verbose=0, callbacks=[board])
    events = b"".join(f.read_bytes() for f in tmp_path.rglob("events*"))
    assert events.count(b"mean_of_x") == 4


def test_the_model_warns_as_often_as_in_keras(connect):
    class Warns(keras.layers.Layer):
        def call(self, x):
            warnings.warn("this layer warns", stacklevel=1)
            return 2 * x

    def counts(trains):
        """How many warnings come of a prediction and of a fit."""
        model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1), Warns()])
        model.compile("sgd", "mse")
        x, y = np.ones([4, 3]), np.ones([4, 1])
        by = trains(model)
        for run in (lambda: by.predict(x, verbose=0), lambda: by.fit(x, y, verbose=0)):
            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always")
                run()
            yield [str(w.message) for w in noted].count("this layer warns")

    strategy = connect(1, 1)
    expected = list(counts(lambda model: model))
    assert list(counts(lambda model: tfps.Trainer(model, strategy))) == expected
