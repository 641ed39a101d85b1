"""Evaluation, prediction and validation beside plain Keras."""

import keras
import numpy as np
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression


def test_evaluate_and_predict_visit_every_example_once(connect):
    x, y = regression(333)
    model = mlp()
    model.compile("sgd", "mse", metrics=["mae"], steps_per_execution=2)
    trainer = tfps.Trainer(model, connect(workers=4))
    mine = trainer.evaluate(x, y, batch_size=20, verbose=0, return_dict=True)
    theirs = model.evaluate(x, y, batch_size=20, verbose=0, return_dict=True)
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5)
    outputs = trainer.predict(x, batch_size=20, verbose=0)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    loss = trainer.evaluate(tf.data.Dataset.from_tensor_slices((x, y)).batch(7), verbose=0)
    np.testing.assert_allclose(loss, list(theirs.values()), rtol=1e-5)


def test_every_validation_sees_the_same_batches(connect):
    x, y = regression(100)
    models = [mlp(), mlp()]
    for model in models:
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    trainer, reference = tfps.Trainer(models[0], connect()), models[1]
    args = {"epochs": 3, "validation_data": (x, y), "validation_batch_size": 10, "verbose": 0}
    mine = trainer.fit(x, y, validation_steps=4, **args).history["val_loss"]
    theirs = reference.fit(x, y, validation_steps=4, **args).history["val_loss"]
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_predict_needs_neither_fit_nor_compile(connect):
    x, _ = regression(40)
    model = mlp()
    outputs = tfps.Trainer(model, connect()).predict(x, verbose=0)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    model.compile("sgd", "mse", metrics=["mae"])
    trainer = tfps.Trainer(model, connect())
    trainer.predict(x, verbose=0)
    assert trainer.evaluate(x, x[:, :1], verbose=0, return_dict=True)["mae"] > 0
