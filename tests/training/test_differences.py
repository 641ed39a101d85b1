"""Training with pulls as differences, against plain Keras and against arithmetic by hand."""

import dataclasses
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tests.training.test_codecs import always, examples, linear
from tfps.compression import Codec, Difference, Int8, OneBit, with_feedback


@dataclasses.dataclass(frozen=True)
class Plain(Codec):
    """Sends a difference as it is: without rounding in the sums, training is as without codec."""

    def encode(self, tensor, state, seed):
        del seed
        return (tensor,), state

    def decode(self, payload, shape, dtype):
        return tf.cast(tf.reshape(payload[0], shape), dtype)

    def payload_bytes(self, shape, dtype):
        return int(np.prod(shape)) * tf.as_dtype(dtype).size


PLAIN = Difference(Plain(min_bytes=0))


class Whole(keras.layers.Layer):
    """Weights, state and gradients that are whole numbers, so that no sum of them rounds."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(shape[-1], 40), initializer="zeros")
        self.seen = self.add_weight(name="seen", shape=(50,), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.seen.assign(self.seen + tf.reduce_max(self.w))
        return x @ self.w


def numbers(batches=24):
    """x and y of whole numbers."""
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, size=(4 * batches, 30)).astype(np.float32)
    return x, rng.integers(-3, 4, size=(len(x), 40)).astype(np.float32)


def compiled():
    """A model whose gradients are signs."""
    model = keras.Sequential([keras.Input([30]), Whole()])

    def loss(y, p):
        return tf.reduce_sum(tf.abs(y - p + 0.5), -1)

    model.compile(keras.optimizers.SGD(1.0), loss=loss)
    return model


def fitted(strategy=None, fits=1, **arguments):
    model = compiled()
    trainer = tfps.Trainer(model, strategy, **arguments) if strategy else model
    x, y = numbers()
    for _ in range(fits):
        trainer.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False)
    return model


MODES = {
    "async": {},
    "several steps a call": {"steps_per_execution": 4},
    "sync": {"consistency": tfps.Sync()},
    "bounded": {"consistency": tfps.BoundedStaleness(1)},
}


@pytest.mark.parametrize("mode", MODES)
def test_differences_without_rounding_are_plain_keras(connect, mode):
    strategy = connect(1, 2)
    arguments = dict(MODES[mode])
    steps = arguments.pop("steps_per_execution", 1)
    model, reference = compiled(), compiled()
    x, y = numbers()
    for one in model, reference:
        one.steps_per_execution = steps
    trainer = tfps.Trainer(model, strategy, pull=PLAIN, **arguments)
    for one in trainer, reference:
        for _ in range(2):
            one.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False)
    assert np.abs(model.get_weights()[0]).max() > 2
    for ours, keras_ in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, keras_)


OVERLAPS = {
    "prefetch 1": {"overlap": 1},
    "prefetch 2": {"overlap": 2},
    "overlap 1": {"overlap": 1, "steps": 4},
    "overlap 2": {"overlap": 2, "steps": 4},
    "local": {"consistency": tfps.LocalSteps(3)},
    "local, delayed": {"consistency": tfps.LocalSteps(4, delay=2)},
    "local, each": {"consistency": tfps.LocalSteps(3, merge="each")},
    "sync": {"consistency": tfps.Sync(), "workers": 2},
}


@pytest.mark.parametrize("mode", OVERLAPS)
def test_differences_without_rounding_are_whole_pulls(connect, mode):
    arguments = dict(OVERLAPS[mode])
    strategy = connect(arguments.pop("workers", 1), 2)
    steps = arguments.pop("steps", 1)
    found = []
    for pull in None, PLAIN:
        model = compiled()
        model.steps_per_execution = steps
        trainer = tfps.Trainer(model, strategy, pull=pull, **arguments)
        x, y = numbers()
        trainer.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False)
        found.append(model.get_weights())
    for ours, whole in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, whole)


@pytest.mark.parametrize("codec", [OneBit(), Int8("stochastic")], ids=repr)
def test_one_worker_trains_as_by_hand(connect, codec):
    codec = always(codec)
    x, y = examples()
    model = linear()
    model.compile(keras.optimizers.SGD(1.0), "mse")
    trainer = tfps.Trainer(model, connect(1, 1), pull=Difference(codec, refresh=6))
    trainer.fit(x, y, batch_size=32, epochs=2, verbose=0, shuffle=False)
    w = linear().layers[0].kernel.numpy()
    seen = np.zeros_like(w)
    for step in range(20):
        begin = step * 32 % len(x)
        xs, ys = x[begin : begin + 32], y[begin : begin + 32]
        pulls = step % 10  # In this epoch, whose first pull is whole.
        if pulls % 6 == 0:
            seen = w
        else:
            seed = tf.constant([pulls, 0])
            payload, _ = codec.encode(tf.reshape(w - seen, [1024]), (), seed)
            seen = seen + tf.reshape(codec.decode(payload, (1024,), "float32"), [32, 32]).numpy()
        w = w - 2 * xs.T @ (xs @ seen - ys) / ys.size
    np.testing.assert_allclose(model.layers[0].kernel, w, rtol=1e-4, atol=1e-6)
    stats = trainer.stats
    whole, part = 4096, codec.payload_bytes((1024,), "float32")
    assert stats["pull_bytes_per_step"][0] == pytest.approx((2 * whole + 8 * part) / 10)


def test_texts_name_codecs(connect):
    x, y = regression()
    model = mlp(units=64)
    model.compile("sgd", "mse")
    with pytest.raises(tfps.ConfigError, match="does not work for gradients"):
        tfps.Trainer(model, connect(1, 2), push="difference:onebit,min_bytes=0").fit(x, y)
    trainer = tfps.Trainer(
        model, connect(1, 2), push="int8:min_bytes=0", pull="difference:onebit,min_bytes=0"
    )
    trainer.fit(x, y, verbose=0)
    assert trainer.stats["pull_bytes_per_step"][0] < 2000


def test_views_that_do_not_fit_are_refused(connect):
    model = mlp(units=64)
    model.compile("sgd", "mse")
    pull = Difference(OneBit(min_bytes=0), max_bytes=100)
    with pytest.raises(tfps.ConfigError, match="a copy of its parameters for each of 2 workers"):
        tfps.Trainer(model, connect(2, 2), pull=pull).fit(*regression(), verbose=0)


def test_a_model_that_runs_eagerly(connect):
    x, y = numbers(6)
    model, reference = compiled(), compiled()
    model.run_eagerly = True
    with pytest.warns(UserWarning, match="eagerly"):
        tfps.Trainer(model, connect(1, 2), pull=PLAIN).fit(
            x, y, batch_size=4, verbose=0, shuffle=False
        )
    reference.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    for ours, keras_ in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, keras_)


@pytest.mark.processes
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        pytest.param({"overlap": 1}, marks=pytest.mark.soak),
        pytest.param({"consistency": tfps.Sync()}, marks=pytest.mark.soak),
        pytest.param({"consistency": tfps.LocalSteps(3, outer="average")}, marks=pytest.mark.soak),
    ],
    ids=["async", "overlap", "sync", "local"],
)
def test_copies_are_right_after_kills(arguments, tmp_path):
    """With a copy that is off, a worker would push the weights to where the loss is not 0."""
    x, y = examples()
    model = linear()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    with tfps.LocalCluster(workers=2, ps=2, processes=True) as cluster:
        trainer = tfps.Trainer(
            model,
            tfps.ParameterServerStrategy(cluster),
            pull=Difference(OneBit(min_bytes=0)),
            snapshots=tfps.Snapshots(tmp_path, every=1.0),
            **arguments,
        )
        trainer.fit(x, y, batch_size=16, epochs=2, verbose=0)
        over = threading.Event()

        def kill():
            for name in "worker 1", "ps 1", "worker 0":
                if over.wait(1.5):
                    return
                (kept,) = [one for one in cluster._kept if one.name == name]
                kept.process.kill()
                killed.append(name)

        killed = []
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        begun = time.monotonic()
        while len(killed) < 3:
            trainer.fit(x, y, batch_size=16, epochs=20, verbose=0)
            assert time.monotonic() - begun < 120, f"only {killed} were killed"
        over.set()
        trainer.fit(x, y, batch_size=16, epochs=60, verbose=0)
    assert model.evaluate(x, y, verbose=0) < 1e-6


def test_feedback_on_the_way_up_goes_with_differences(connect):
    x, y = examples()
    model = linear()
    model.compile(keras.optimizers.SGD(1.0), "mse")
    codec = with_feedback(always(OneBit()))
    trainer = tfps.Trainer(
        model, connect(2, 2), push=codec, pull=Difference(always(OneBit())), consistency=tfps.Sync()
    )
    history = trainer.fit(x, y, batch_size=32, epochs=30, verbose=0)
    assert history.history["loss"][-1] < 0.05 * history.history["loss"][0]
