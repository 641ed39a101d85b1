"""The stateless optimizer against Keras's own, update by update."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfps.model import optimizer_traits
from tfps.model.gradients import unscale_and_clip
from tfps.model.loss_scale import LossScale
from tfps.model.server_optimizer import ServerOptimizer

o = keras.optimizers

CASES = {
    "sgd": lambda: o.SGD(0.1),
    "nesterov": lambda: o.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: o.Adam(0.1, amsgrad=True),
    "adamw": lambda: o.AdamW(0.1, weight_decay=0.1),
    "rmsprop": lambda: o.RMSprop(0.1, centered=True, momentum=0.5),
    "adagrad": lambda: o.Adagrad(0.1),
    "adadelta": lambda: o.Adadelta(0.1),
    "adamax": lambda: o.Adamax(0.1),
    "nadam": lambda: o.Nadam(0.1),
    "ftrl": lambda: o.Ftrl(0.1),
    "lion": lambda: o.Lion(0.1),
    "adafactor": lambda: o.Adafactor(0.1),
    "lamb": lambda: o.Lamb(0.1),
    "muon": lambda: o.Muon(0.1),
    "ema": lambda: o.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
    "accumulation": lambda: o.Adam(0.1, weight_decay=0.1, gradient_accumulation_steps=3),
    "clipvalue": lambda: o.SGD(1.0, gradient_accumulation_steps=2, clipvalue=0.1),
    "clipnorm": lambda: o.SGD(1.0, gradient_accumulation_steps=2, clipnorm=0.5),
    "global_clipnorm": lambda: o.SGD(1.0, gradient_accumulation_steps=2, global_clipnorm=0.5),
    "schedule": lambda: o.SGD(o.schedules.ExponentialDecay(0.1, 2, 0.5)),
}


def variables():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (6, 4), "bias": (4,)}
    return [keras.Variable(rng.normal(size=s).astype("float32"), name=n) for n, s in shapes.items()]


def gradients(step):
    rng = np.random.default_rng(step + 1)
    return [tf.constant(rng.normal(size=s), tf.float32) for s in [(6, 4), (4,)]]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_equals_keras(name, jit_compile):
    reference, mine = variables(), variables()
    optimizer = CASES[name]()
    original = CASES[name]()
    server = ServerOptimizer(original, mine, [bool(original.weight_decay)] * 2)
    apply = tf.function(server.apply, jit_compile=jit_compile, autograph=False)
    values = [v.value for v in mine]
    state = [v.value for v in server.state]
    for step in range(7):
        optimizer.apply(gradients(step), reference)
        values, state = apply(
            [tf.convert_to_tensor(v) for v in values],
            [tf.convert_to_tensor(s) for s in state],
            gradients(step),
            tf.constant(optimizer_traits.settable_rate(original)),
        )
    for value, v in zip(values, reference, strict=True):
        np.testing.assert_allclose(value, v.numpy(), rtol=2e-5, atol=1e-6)
    updated = {id(v): s for v, s in zip(server.state, state, strict=True)}
    assert int(updated[id(server.iterations)]) == 7
    assert not original.built


def test_flat_buckets_are_only_for_elementwise_optimizers():
    elementwise = {n for n in CASES if optimizer_traits.is_elementwise(CASES[n]())}
    whole = {"adafactor", "lamb", "muon", "clipnorm", "global_clipnorm"}
    assert elementwise == set(CASES) - whole
    assert optimizer_traits.is_elementwise(o.LossScaleOptimizer(o.Adam()))


@pytest.mark.parametrize(
    "clip", [{"clipnorm": 0.5}, {"clipvalue": 0.1}, {"global_clipnorm": 0.5}, {}]
)
def test_clipping_on_the_worker_equals_keras(clip):
    reference = variables()
    o.SGD(1.0, **clip).apply(gradients(0), reference)
    clipped, finite = unscale_and_clip(o.SGD(1.0, **clip), gradients(0), tf.constant(1.0))
    assert finite
    for v, start, g in zip(reference, variables(), clipped, strict=True):
        np.testing.assert_allclose(v.numpy(), start.numpy() - g, rtol=1e-6, atol=1e-7)


def test_static_loss_scale_is_undone():
    optimizer = o.SGD(1.0, loss_scale_factor=8.0)
    scale = optimizer_traits.static_loss_scale(optimizer)
    assert scale == 8.0
    scaled = [g * scale for g in gradients(0)]
    plain, _ = unscale_and_clip(optimizer, scaled, tf.constant(scale))
    np.testing.assert_array_equal(plain[0], gradients(0)[0])


def test_overflow_is_found():
    optimizer = o.LossScaleOptimizer(o.SGD())
    for bad in (np.nan, np.inf):
        g = [tf.constant([1.0, bad]), None]
        assert not unscale_and_clip(optimizer, g, tf.constant(2.0))[1]
    assert unscale_and_clip(optimizer, [tf.constant([1.0]), None], tf.constant(2.0))[1]


def test_loss_scale_grows_and_halves_once_for_simultaneous_overflows():
    scale = LossScale(o.LossScaleOptimizer(o.SGD(), initial_scale=8.0, dynamic_growth_steps=2))
    value, good = (tf.convert_to_tensor(v) for v in scale.variables)
    value, good = scale.update(value, good, value, True)
    value, good = scale.update(value, good, value, True)
    assert (float(value), int(good)) == (16.0, 0)
    used = value
    value, good = scale.update(value, good, used, False)
    value, good = scale.update(value, good, used, False)
    assert (float(value), int(good)) == (8.0, 0)


def test_weight_decay_is_per_variable():
    mine = variables()
    server = ServerOptimizer(o.SGD(0.5, weight_decay=0.5), mine, [True, False])
    zeros = [tf.zeros_like(v.value) for v in mine]
    state = [tf.convert_to_tensor(v.value) for v in server.state]
    values, _ = server.apply([v.value for v in mine], state, zeros, tf.constant(0.5))
    np.testing.assert_allclose(values[0], 0.75 * mine[0].numpy(), rtol=1e-6)
    np.testing.assert_array_equal(values[1], mine[1].numpy())


def test_callable_learning_rate_is_asked_every_time():
    rates = iter([0.5, 0.25])
    optimizer = o.SGD(lambda: next(rates))
    assert [optimizer_traits.settable_rate(optimizer) for _ in range(2)] == [0.5, 0.25]
