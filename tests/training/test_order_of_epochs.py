"""The order of the examples in every epoch: with one worker it is Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps


class Noting(keras.Sequential):
    """Notes the order of the examples that it is trained on, by their first input."""

    def __init__(self):
        super().__init__([keras.layers.Dense(1)])
        self.order = []

    def train_step(self, data):
        x, _ = data

        def note(first):
            self.order.extend(first.numpy().tolist())
            return first

        with tf.control_dependencies([tf.py_function(note, [x[:, 0]], x.dtype)]):
            return super().train_step(data)


def _numbers():
    x = np.arange(12, dtype="float32")[:, None]
    return tf.data.Dataset.from_tensor_slices((x, x))


ORDERED = {
    "a seed": lambda: {"x": _numbers().shuffle(12, seed=5).batch(2)},
    "an unknown length": lambda: {
        "x": _numbers().shuffle(12, seed=5).batch(2).filter(lambda x, y: True)
    },
    "steps": lambda: {"x": _numbers().shuffle(12, seed=5).batch(2).repeat(), "steps_per_epoch": 4},
    "arrays": lambda: {"x": np.arange(12.0)[:, None], "y": np.arange(12.0), "batch_size": 2},
}


@pytest.mark.parametrize("name", ORDERED)
def test_every_epoch_has_the_order_that_it_has_in_keras(connect, name):
    orders, strategy = [], connect(1)
    for way in (keras.Model.fit, lambda m, **fit: tfps.Trainer(m, strategy).fit(**fit)):
        keras.utils.set_random_seed(3)
        model = Noting()
        model.build((None, 1))
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
        arguments = ORDERED[name]()
        way(model, epochs=3, verbose=0, **arguments)
        way(model, epochs=1, verbose=0, **arguments)
        orders.append(model.order)
    assert orders[0] == orders[1]
