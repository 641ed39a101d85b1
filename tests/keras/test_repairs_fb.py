"""Steps, logs and states of the user's own, against plain Keras on the same batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error

o = keras.optimizers
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
