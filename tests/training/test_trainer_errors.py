"""What a `Trainer` refuses, and how it says what went wrong."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting, mlp, regression
from tfps.cluster import health

o = keras.optimizers


def ones(context):
    return tf.data.Dataset.from_tensors((tf.ones([1, 1]), tf.ones([1, 1]))).repeat()


def test_errors_are_one_clear_line(connect):
    x, y = regression(64)
    strategy = connect()
    with pytest.raises(tfps.ConfigError, match=r"needs a tfps\.ParameterServerStrategy"):
        tfps.Trainer(mlp(), None)
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, strategy)
    with pytest.raises(tfps.DataError, match="y was given together with a dataset_fn"):
        trainer.fit(ones, y)
    with pytest.raises(tfps.DataError, match=r"must return a tf\.data\.Dataset"):
        trainer.fit(lambda context: 3)
    with pytest.raises(tfps.DataError, match="predict was given a dataset_fn"):
        trainer.predict(ones)
    with pytest.raises(tfps.DataError, match="no batch"):
        trainer.fit(tf.data.Dataset.from_tensor_slices((x[:0], y[:0])).batch(2), verbose=0)
    clipped = o.SGD(gradient_accumulation_steps=2, global_clipnorm=1.0)
    model.compile(clipped, "mse")
    with pytest.raises(tfps.ConfigError, match="use clipnorm, or one ps"):
        trainer.fit(x, y)
    split = connect(partitioner=tf.distribute.experimental.partitioners.FixedShardsPartitioner(2))
    model = mlp()
    model.compile(o.Muon(), "mse")
    with pytest.raises(tfps.ConfigError, match="Muon needs whole variables"):
        tfps.Trainer(model, split).fit(x, y)


def test_an_error_on_a_worker_names_it(connect):
    class Picky(keras.Model):
        def call(self, x):
            with tf.control_dependencies([tf.debugging.assert_less(x, 100.0, "x is too large")]):
                return tf.identity(x)

    x = np.ones([64, 1], "float32")
    x[40] = 1000
    model = Picky()
    model.compile("sgd", "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect())
    with pytest.raises(tfps.WorkerError) as caught:
        trainer.evaluate(x, x, batch_size=8, verbose=0)
    assert caught.value.worker == 0
    assert caught.value.address in str(caught.value)
    assert "x is too large" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert trainer.evaluate(x[:40], x[:40], batch_size=8, verbose=0) == 0.0


def test_a_call_that_outlives_its_fit_pushes_before_the_next_one(connect, monkeypatch):
    monkeypatch.setattr(health, "DRAIN", 0.1)
    release, waits = threading.Event(), threading.Event()

    def slow(index):
        if index == 1:
            waits.set()
            release.wait(20)
        return np.float32(index)

    def dataset_fn(context):
        index = context.worker_index
        one = tf.data.Dataset.from_tensors(index).repeat(40).prefetch(0)
        one = one.map(lambda i: tf.reshape(tf.numpy_function(slow, [i], tf.float32), [1, 1]))
        return one.map(lambda x: (x, x))

    def interrupt(batch, logs):
        waits.wait(20)
        raise KeyboardInterrupt

    model = Counting.compiled(o.SGD(1.0))
    model.build((None, 1))
    trainer = tfps.Trainer(model, connect(2))
    stop = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(dataset_fn, callbacks=[stop], verbose=0)
    model.set_weights([np.zeros(4, np.float32), np.int32(0)])
    threading.Timer(0.5, release.set).start()
    x = np.ones([12, 1], np.float32)
    trainer.fit(x, x, batch_size=1, verbose=0)
    np.testing.assert_array_equal(model.w, np.full(4, -12.0))
    assert int(model.batches) == 12
