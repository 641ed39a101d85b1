"""A model in the middle of `fit`: after errors, and what hooks may do to it; beside plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error

DATA = regression(64)
FIT = {"batch_size": 8, "shuffle": False, "verbose": 0}


def compiled(model=None, **compile_args):
    model = model or mlp()
    model.compile("adam", "mse", **compile_args)
    return model


def on_batch_end(function):
    """A callback that calls `function(batch)` after each batch."""
    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: function(batch))


@pytest.mark.parametrize("watched", [False, True], ids=["deferred", "watched"])
def test_iterations_after_an_error_of_the_input(connect, watched):
    x, y = DATA

    def batches():
        for i in range(5):
            yield x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]
        raise RuntimeError("the input ends in an error")

    specs = tf.TensorSpec([8, 8]), tf.TensorSpec([8, 1])
    callbacks = [on_batch_end(lambda batch: None)] if watched else []
    model = compiled()
    with pytest.raises(Exception, match="the input ends in an error"):
        tfps.Trainer(model, connect()).fit(
            tf.data.Dataset.from_generator(batches, output_signature=specs),
            verbose=0,
            callbacks=callbacks,
        )
    reference = compiled()
    reference.fit(x[:40], y[:40], **FIT)
    assert int(model.optimizer.iterations) == 5
    assert relative_error(model, reference) < 1e-5
