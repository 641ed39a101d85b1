"""`run_eagerly=True`: slow, but the user's code sees tensors that have `numpy()`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error

o = keras.optimizers
ARGS = {"batch_size": 16, "shuffle": False, "verbose": 0, "epochs": 2}


class Peeking(keras.Sequential):
    """Looks at values in its step, as somebody does who debugs it."""

    def train_step(self, data):
        self.__dict__.setdefault("peeked", []).append(float(data[0].numpy().sum()))
        logs = super().train_step(data)
        return {**logs, "twice": 2 * float(logs["loss"]), "largest": float(data[0].numpy().max())}

    def call(self, x, training=None):
        if x.numpy().sum() > 1e9:  # Python's own condition.
            raise ValueError("unreachable")
        return super().call(x, training=training)


def made(cls=Peeking, **compile_args):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.BatchNormalization()]
    model = cls([*layers, keras.layers.Dense(1)])  # Unbuilt.
    model.compile(o.Adam(0.01), "mse", metrics=["mae"], run_eagerly=True, **compile_args)
    return model


@pytest.mark.parametrize(
    "consistency",
    [pytest.param(None, marks=pytest.mark.soak), tfps.Sync()],
    ids=["async", "sync"],
)
def test_one_worker_equals_keras_op_by_op(connect, consistency):
    strategy = connect()
    x, y = regression(80)
    model, reference = made(), made()
    trainer = tfps.Trainer(model, strategy, consistency)
    with pytest.warns(UserWarning, match="op by op"):
        mine = trainer.fit(x, y, validation_data=(x[:32], y[:32]), **ARGS).history
    theirs = reference.fit(x, y, validation_data=(x[:32], y[:32]), **ARGS).history
    assert relative_error(model, reference) < 1e-6
    assert mine.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6)
    # Each batch, and a made-up one: to build the model, and to see what the step does.
    assert model.peeked[-10:] == pytest.approx(reference.peeked, rel=1e-5)
    np.testing.assert_allclose(
        trainer.predict(x, verbose=0), reference.predict(x, verbose=0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:the model was compiled with run_eagerly")
def test_several_workers_and_datasets_on_them(connect):
    strategy = connect(2)
    x, y = regression(64)

    def dataset_fn(context):
        mine = slice(context.worker_index, None, context.num_workers)
        return tf.data.Dataset.from_tensor_slices((x[mine], y[mine])).batch(16)

    model = made(steps_per_execution=2)
    trainer = tfps.Trainer(model, strategy, tfps.Sync())
    losses = trainer.fit(dataset_fn, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert int(model.optimizer.iterations) == 6


@pytest.mark.filterwarnings("ignore:the model was compiled with run_eagerly")
def test_local_steps_do_not_go_with_it(connect):
    strategy = connect()
    x, y = regression(32)
    trainer = tfps.Trainer(made(), strategy, tfps.LocalSteps(2))
    with pytest.raises(tfps.ConfigError, match="does not go with LocalSteps"):
        trainer.fit(x, y, verbose=0)


def test_functions_that_run_eagerly_change_nothing(connect):
    strategy = connect()
    x, y = regression(64)
    models = []
    for eagerly in (False, True):
        model = mlp()
        model.compile(o.SGD(0.1), "mse", jit_compile=False)
        tf.config.run_functions_eagerly(eagerly)
        try:
            tfps.Trainer(model, strategy).fit(x, y, **ARGS)
        finally:
            tf.config.run_functions_eagerly(False)
        models.append(model)
    assert relative_error(*models) < 1e-6
