"""Hooks of batches, where workers end their calls in another order than they began them."""

import itertools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps


class Slow(keras.layers.Layer):
    """Passes its input on, and takes half a second for a batch that begins with 0."""

    def call(self, x):
        def wait(values):
            time.sleep(0.5 * float(values[0, 0] == 0))
            return values

        if isinstance(x, keras.KerasTensor):
            return x
        return tf.ensure_shape(tf.py_function(wait, [x], x.dtype), x.shape)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Calls(keras.callbacks.Callback):
    """Notes the indices of the hooks after batches; stops when there were enough."""

    def __init__(self, most=None):
        super().__init__()
        self.most = most
        self.ends = {"train": [], "test": [], "predict": []}
        self.outputs = []

    def _note(self, kind, batch, stop):
        self.ends[kind].append(batch)
        if len(self.ends[kind]) == self.most:
            setattr(self.model, stop, True)

    def on_train_batch_end(self, batch, logs=None):
        self._note("train", batch, "stop_training")

    def on_test_batch_end(self, batch, logs=None):
        self._note("test", batch, "stop_evaluating")

    def on_predict_batch_end(self, batch, logs=None):
        self.outputs.append(np.array(logs["outputs"]))
        self._note("predict", batch, "stop_predicting")


def made(*layers, steps_per_execution=1):
    model = keras.Sequential([keras.Input((1,)), *layers])
    model.compile(
        keras.optimizers.SGD(0.0), "mse", steps_per_execution=steps_per_execution, jit_compile=False
    )
    return model


def batches():
    """Without end; batch i is full of i."""
    for i in itertools.count():
        x = np.full((2, 1), i, "float32")
        yield x, x


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_no_hook_follows_the_one_that_stops(connect, method):
    model = made(keras.layers.Dense(1, kernel_initializer="ones"))
    calls = Calls(most=5)
    trainer = tfps.Trainer(model, connect(workers=3))
    result = getattr(trainer, method)(batches(), callbacks=[calls], verbose=0)
    kind = {"fit": "train", "evaluate": "test"}.get(method, method)
    assert calls.ends[kind] == list(range(5))
    if method == "predict":
        np.testing.assert_array_equal(result[:, 0], np.repeat(np.arange(5), 2))


def test_an_evaluation_counts_what_its_hooks_were_told(connect):
    def ones():
        while True:
            yield np.ones((2, 1)), np.zeros((2, 1))

    class Examples(keras.metrics.Sum):
        def update_state(self, y_true, y_pred, sample_weight=None):
            super().update_state(tf.ones_like(y_pred))

    model = made(keras.layers.Dense(1, kernel_initializer="ones"))
    model.compile("sgd", "mse", metrics=[Examples(name="examples")], jit_compile=False)
    trainer = tfps.Trainer(model, connect(workers=3))
    logs = trainer.evaluate(ones(), callbacks=[Calls(most=5)], return_dict=True, verbose=0)
    assert logs["examples"] == 10


def test_predictions_are_told_in_the_order_of_the_input(connect):
    calls = Calls()
    trainer = tfps.Trainer(made(Slow()), connect(workers=2))
    x = np.arange(6, dtype="float32")[:, None]
    result = trainer.predict(x, batch_size=1, callbacks=[calls], verbose=0)
    assert calls.ends["predict"] == list(range(6))
    np.testing.assert_array_equal(np.concatenate(calls.outputs), x)
    np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_a_short_call_that_ends_before_a_longer_one(connect, method):
    # Of 7 batches, the calls have 3, 3 and 1, and the first one takes longest.
    calls = Calls()
    model = made(Slow(), keras.layers.Dense(1), steps_per_execution=3)
    trainer = tfps.Trainer(model, connect(workers=2))
    x = np.arange(7, dtype="float32")[:, None]
    arguments = {"shuffle": False} if method == "fit" else {}
    getattr(trainer, method)(x, x, batch_size=1, callbacks=[calls], verbose=0, **arguments)
    assert calls.ends["train" if method == "fit" else "test"] == [2, 5, 8]
