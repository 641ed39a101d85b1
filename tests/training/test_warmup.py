"""A warm-up without codecs, after which Adam's second moments stay as they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tests.training.test_codecs import examples, linear
from tfps.compression import OneBit, TopK, with_feedback

WARMUP, BATCH = 6, 32
CODEC = OneBit(min_bytes=0)


def by_hand(x, y, rate, epochs, decay):
    """Adam with decoupled decay whose squares are left after the warm-up, in NumPy."""
    codec = with_feedback(CODEC)
    w = linear().layers[0].kernel.numpy().astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    state = codec.initial_state((w.size,))
    for step in range(epochs * len(x) // BATCH):
        begin = step * BATCH % len(x)
        xs, ys = x[begin : begin + BATCH], y[begin : begin + BATCH]
        g = 2 * xs.T @ (xs @ w - ys) / ys.size
        if step >= WARMUP:
            flat = tf.constant(g.reshape(-1), tf.float32)
            payload, state = codec.encode(flat, state, tf.zeros([2], tf.int32))
            g = codec.decode(payload, (w.size,), "float32").numpy().reshape(w.shape)
        m = 0.9 * m + 0.1 * g
        if step < WARMUP:
            v = 0.99 * v + 0.01 * g**2
        correction = 1 - 0.99 ** min(step + 1, WARMUP)
        w -= rate * decay * w
        w -= rate * np.sqrt(correction) / (1 - 0.9 ** (step + 1)) * m / (np.sqrt(v) + 1e-7)
    return w


@pytest.mark.parametrize(
    "decay, policy",
    [
        (0.1, tfps.Sync),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in [(0.0, tfps.Async), (0.0, tfps.Sync), (0.1, tfps.Async)]
        ),
    ],
)
def test_equals_adam_by_hand(connect, policy, decay):
    """The codec begins, and the squares stay, after exactly so many updates, for good."""
    x, y = examples()
    model = linear()
    if decay:
        optimizer = keras.optimizers.AdamW(0.01, beta_2=0.99, weight_decay=decay)
    else:
        optimizer = keras.optimizers.Adam(0.01, beta_2=0.99)
    model.compile(optimizer, "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect(), policy(), push=CODEC, push_warmup=WARMUP)
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    up = []
    for _ in range(2):
        trainer.fit(x, y, **arguments)
        up += trainer.stats["push_bytes_per_step"]
    expected = by_hand(x, y, 0.01, 2, decay)
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-3, atol=1e-4)
    coded = CODEC.payload_bytes((1024,), "float32")
    assert up == [(WARMUP * 4096 + (10 - WARMUP) * coded) / 10, coded]


def test_other_optimizers_only_begin_later(connect):
    """SGD has no second moments: a warm-up is as if the codec was given at that update."""
    x, y = examples()
    models = []
    for warmup in (0, 10):
        model = linear()
        model.compile(keras.optimizers.SGD(0.5), "mse")
        codec = TopK(0.1, min_bytes=0)
        trainer = tfps.Trainer(model, connect(), push=codec, push_warmup=warmup)
        trainer.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
        models.append(model.get_weights()[0])
    plain = linear()
    plain.compile(keras.optimizers.SGD(0.5), "mse")
    plain.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    np.testing.assert_allclose(models[1], plain.get_weights()[0], rtol=1e-5, atol=1e-6)
    assert np.abs(models[0] - models[1]).max() > 1e-3


def test_what_had_no_gradient_in_the_warm_up_is_not_divided_by_nothing(connect):
    x, y = examples()
    x[: WARMUP * BATCH, :16] = 0.0  # These rows of the kernel get no gradient at first.
    model = linear()
    before = model.get_weights()[0]
    model.compile(keras.optimizers.Adam(0.01), "mse")
    trainer = tfps.Trainer(model, connect(), push=TopK(0.2, min_bytes=0), push_warmup=WARMUP)
    trainer.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    moved = np.abs(model.get_weights()[0] - before)
    assert moved[:16].max() > 0
    assert moved.max() < 10 * 0.01 * 10


@pytest.mark.parametrize("overlap", [2, pytest.param(0, marks=pytest.mark.soak)])
def test_two_workers_learn_through_a_warm_up(connect, overlap):
    x, y = regression()
    model = mlp()
    model.compile(keras.optimizers.Adam(0.01), "mse", steps_per_execution=4)
    codec = OneBit(min_bytes=0)
    trainer = tfps.Trainer(model, connect(2), push=codec, overlap=overlap, push_warmup=30)
    history = trainer.fit(x, y, batch_size=16, epochs=6, verbose=0).history
    assert int(model.optimizer.iterations) == 120
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    sent = trainer.stats["push_bytes_per_step"]
    assert sent[-1] < 0.3 * sent[0]


def test_bad_warm_ups(connect):
    model = linear()
    model.compile("adam", "mse")
    for bad in (-1, 0.5, True):
        with pytest.raises(tfps.ConfigError, match="is not a number of updates"):
            tfps.Trainer(model, connect(), push_warmup=bad)


def test_local_steps_have_no_warm_up(connect):
    """And one under another policy begins with that policy."""
    x, y = examples()
    model = linear()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    local = tfps.LocalSteps(2, keras.optimizers.SGD(1.0))
    trainer = tfps.Trainer(model, connect(), local, push=CODEC, push_warmup=WARMUP)
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    coded = CODEC.payload_bytes((1024,), "float32")
    for _ in range(2):
        trainer.fit(x, y, **arguments)
        (up,) = trainer.stats["push_bytes_per_step"]
        assert up == coded / 2
    trainer.consistency = tfps.Async()
    trainer.fit(x, y, **arguments)
    (up,) = trainer.stats["push_bytes_per_step"]
    assert up == (WARMUP * 4096 + (10 - WARMUP) * coded) / 10
    assert trainer.state.chief.frozen_at == WARMUP


def test_accumulated_gradients_freeze_with_the_updates_that_they_made(connect):
    """A constant gradient moves every element by the learning rate, before and after."""
    model = linear()
    before = model.get_weights()[0]
    made = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    model.compile(made, loss=lambda y, p: p)
    ones = np.ones([40, 32], np.float32)
    codec = TopK(1.0, min_bytes=0)
    trainer = tfps.Trainer(model, connect(), push=codec, push_warmup=8)
    trainer.fit(ones, ones, batch_size=1, verbose=0)
    np.testing.assert_allclose(before - model.get_weights()[0], 20 * 0.01, rtol=1e-3)
