"""Codecs in training: what they do to the weights, and how many bytes they say they take."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tfps.compression import (
    DGC,
    BFloat16,
    ErrorFeedback,
    Float16,
    Identity,
    Int8,
    OneBit,
    PowerSGD,
    RandomK,
    Ternary,
    TopK,
    with_feedback,
)

# Those of the second row draw random numbers.
PUSH = [
    Identity(), Float16(), BFloat16(), Int8(), OneBit(), TopK(0.1), DGC(0.1, momentum=0.0),
    DGC(0.1, momentum=0.0, warmup=5),
    Int8("stochastic"), Ternary(), RandomK(0.5), PowerSGD(2),
]  # fmt: skip
PULL = [Identity(), Float16(), BFloat16(), Int8()]
soak = pytest.mark.soak


def always(codec):
    """Whatever the size of the variable."""
    return dataclasses.replace(codec, min_bytes=0)


def linear():
    keras.utils.set_random_seed(2)
    return keras.Sequential([keras.Input([32]), keras.layers.Dense(32, use_bias=False)])


def by_hand(codec, pull, x, y, rate, epochs, bucket=0):
    """Training of `linear` with codecs, without servers; the codec's seeds are of a bucket."""
    codec = with_feedback(codec)
    w = tf.constant(linear().layers[0].kernel.numpy())
    shape = (32, 32) if codec.matrices else (1024,)
    state = codec.initial_state(shape)
    for step in range(epochs * len(x) // 32):
        begin = step * 32 % len(x)
        xs, ys = x[begin : begin + 32], y[begin : begin + 32]
        payload, _ = pull.encode(tf.reshape(w, [1024]), (), tf.zeros([2], tf.int32))
        seen = tf.reshape(pull.decode(payload, (1024,), "float32"), [32, 32])
        gradient = 2 * tf.linalg.matmul(xs, xs @ seen - ys, transpose_a=True) / ys.size
        seed = tf.constant([step, 100 * bucket])
        payload, state = codec.encode(tf.reshape(gradient, shape), state, seed)
        w -= rate * tf.reshape(codec.decode(payload, shape, "float32"), [32, 32])
    return w.numpy()


def examples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(320, 32)).astype(np.float32)
    return x, (x @ rng.normal(size=(32, 32))).astype(np.float32)


def heads(number):
    """As many layers as that beside each other, each as in `linear`."""
    inputs = keras.Input([32])
    layers = [keras.layers.Dense(32, use_bias=False, name=f"head{i}") for i in range(number)]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    for layer in layers:
        layer.kernel.assign(linear().layers[0].kernel)
    return model


def of_head(codecs):
    """The codec of each variable of `heads`."""
    return lambda variable: always(codecs[int(variable.path.split("/")[-2].removeprefix("head"))])


def test_codecs_equal_themselves_by_hand(connect):
    """All in one model; otherwise as below."""
    x, y = examples()
    model = heads(len(PUSH))
    model.compile(
        keras.optimizers.SGD(0.5), ["mse"] * len(PUSH), steps_per_execution=3, jit_compile=False
    )
    trainer = tfps.Trainer(model, connect(), push=of_head(PUSH))
    trainer.fit(x, [y] * len(PUSH), batch_size=32, epochs=2, shuffle=False, verbose=0)
    buckets = trainer._session.served.store.plan.buckets
    bucket_of = {s.variable: i for i, bucket in enumerate(buckets) for s in bucket.shards}
    assert len(buckets) == len(bucket_of) == len(PUSH)
    for i, (codec, weights) in enumerate(zip(PUSH, model.get_weights(), strict=True)):
        expected = by_hand(always(codec), Identity(), x, y, 0.5, 2, bucket_of[i])
        np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-4, err_msg=repr(codec))


@pytest.mark.soak
@pytest.mark.parametrize("push", PUSH, ids=repr)
def test_push_equals_the_codec_by_hand(connect, push):
    """Over several calls and epochs: residuals are carried, seeds differ by step."""
    x, y = examples()
    model = linear()
    model.compile(keras.optimizers.SGD(0.5), "mse", steps_per_execution=3)
    trainer = tfps.Trainer(model, connect(), push=always(push))
    trainer.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
    expected = by_hand(always(push), Identity(), x, y, 0.5, 2)
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("overlap", [0, pytest.param(2, marks=soak)])
def test_pull_equals_the_codec_by_hand(connect, overlap):
    x, y = examples()
    model = heads(len(PULL))
    model.compile(keras.optimizers.SGD(0.5), ["mse"] * len(PULL), jit_compile=False)
    trainer = tfps.Trainer(model, connect(), pull=of_head(PULL), overlap=overlap)
    rounds = 1 if overlap else 2
    x, y = (x[:32], y[:32]) if overlap else (x, y)  # One step: nothing to miss.
    trainer.fit(x, [y] * len(PULL), batch_size=32, epochs=rounds, shuffle=False, verbose=0)
    for codec, weights in zip(PULL, model.get_weights(), strict=True):
        expected = by_hand(Identity(), always(codec), x, y, 0.5, rounds)
        np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-4, err_msg=repr(codec))


LEARNING = [Int8(), OneBit(), TopK(0.1), DGC(0.1, momentum=0.0, warmup=5), PowerSGD(2)]


def test_two_workers_learn_with_a_codec_for_each_head(connect):
    """Each head learns; its part of the loss says so."""
    x, y = examples()
    model = heads(len(LEARNING))
    model.compile(
        keras.optimizers.Adam(0.03),
        ["mse"] * len(LEARNING),
        metrics=["mse"] * len(LEARNING),
        steps_per_execution=2,
        jit_compile=False,
    )
    trainer = tfps.Trainer(
        model, connect(workers=2), push=of_head(LEARNING), pull=BFloat16(min_bytes=0), overlap=1
    )
    history = trainer.fit(x, [y] * len(LEARNING), batch_size=32, epochs=4, verbose=0).history
    for i, codec in enumerate(LEARNING):
        losses = history[f"head{i}_mse"]
        assert losses[-1] < 0.8 * losses[0], codec


@pytest.mark.soak
@pytest.mark.parametrize("push", LEARNING, ids=repr)
def test_two_workers_learn(connect, push):
    x, y = regression()
    model = mlp()
    model.compile(keras.optimizers.Adam(0.01), "mse", steps_per_execution=2)
    trainer = tfps.Trainer(
        model, connect(workers=2), push=always(push), pull=BFloat16(min_bytes=0), overlap=1
    )
    losses = trainer.fit(x, y, batch_size=16, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_bytes_are_those_of_the_payloads(connect):
    x, y = examples()
    model = linear()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    n = 1024
    for push, pull, up, down in [
        (None, None, 4 * n, 4 * n),
        (Float16(), BFloat16(), 2 * n, 2 * n),
        (TopK(0.01), Int8(block=256), 8 * 11, n + 4 * 4),
        (PowerSGD(2), None, 4 * 2 * (32 + 32), 4 * n),
    ]:
        trainer = tfps.Trainer(model, connect(), push=push, pull=pull)
        trainer.fit(x, y, verbose=0)
        assert trainer.stats["push_bytes_per_step"] == [up]
        assert trainer.stats["pull_bytes_per_step"] == [down]


def test_a_codec_for_each_variable(connect):
    x, y = regression()
    model = mlp(units=64)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    kernels = [v for v in model.trainable_variables if v.path.endswith("kernel")]

    def push(variable):
        return Float16(min_bytes=0) if variable.path.endswith("kernel") else None

    trainer = tfps.Trainer(model, connect(), push=push)
    trainer.fit(x, y, verbose=0)
    total = sum(4 * int(np.prod(v.shape)) for v in model.trainable_variables)
    halved = sum(2 * int(np.prod(v.shape)) for v in kernels)
    assert trainer.stats["push_bytes_per_step"] == [total - halved]


def test_small_variables_are_left_alone(connect):
    x, y = regression()
    model = mlp()  # The largest has 128 elements.
    model.compile(keras.optimizers.SGD(0.1), "mse")
    trainer = tfps.Trainer(model, connect(), push=TopK(0.01), pull=Float16())
    trainer.fit(x, y, verbose=0)
    stats = trainer.stats
    total = 4 * sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert stats["push_bytes_per_step"] == stats["pull_bytes_per_step"] == [total]


def test_weights_are_not_rounded_by_pulls(connect):
    """The servers keep float32, and evaluation sees just that."""
    x, y = regression()
    model = mlp()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = model.get_weights()
    trainer = tfps.Trainer(model, connect(), pull=Int8(min_bytes=0))
    trainer.fit(x, y, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert trainer.evaluate(x, y, verbose=0) == pytest.approx(
        model.evaluate(x, y, verbose=0), rel=1e-5
    )


@pytest.mark.parametrize(
    "pull",
    [
        Ternary(),
        ErrorFeedback(Int8()),
        *(
            pytest.param(codec, marks=soak)
            for codec in (OneBit(), TopK(0.1), RandomK(0.1), DGC(0.1), PowerSGD(2))
        ),
    ],
    ids=repr,
)
def test_codecs_that_are_not_for_weights(connect, pull):
    x, y = regression()
    model = mlp()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(tfps.ConfigError, match=r"pull=.* does not work for parameters: .*Int8"):
        tfps.Trainer(model, connect(), pull=pull).fit(x, y, verbose=0)


def test_what_is_no_codec(connect):
    x, y = regression()
    model = mlp()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(tfps.ConfigError, match=r"push gave 8 for .*kernel; it must be"):
        tfps.Trainer(model, connect(), push=lambda v: 8).fit(x, y, verbose=0)
    with pytest.raises(tfps.ConfigError, match="push gave 8"):
        tfps.Trainer(model, connect(), push=8).fit(x, y, verbose=0)
    with pytest.raises(tfps.ConfigError, match="codec 'zip' is unknown"):
        tfps.Trainer(model, connect(), push=lambda v: "zip").fit(x, y, verbose=0)


def test_an_overflow_does_not_cost_the_residual(connect):
    """With dynamic loss scaling the servers skip a step; what was to be sent is kept."""
    x, y = regression()
    model = mlp()
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=2.0**127
    )
    model.compile(optimizer, "mse")
    trainer = tfps.Trainer(model, connect(), push=TopK(0.1, min_bytes=0))
    trainer.fit(x * 1e4, y, batch_size=32, epochs=1, verbose=0)
    (memory,) = trainer.state.export().workers["gradients"]
    assert all(np.isfinite(r).all() for r in tf.nest.flatten(memory.residuals))
    assert all(np.isfinite(w).all() for w in model.get_weights())
