"""What programs may do between and within steps, with Keras on the same batches as the reference."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps

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
