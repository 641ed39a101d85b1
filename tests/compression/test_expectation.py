"""What random codecs send on average."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.compression.codecs import PLAIN, name, normal, seed
from tfps.compression import BFloat16, Int8, RandomK, Ternary
from tfps.compression.kernels import hashing, strata


def mean_and_error(codec, g, samples=2000):
    @tf.function(autograph=False)
    def draw():
        def one(s):
            payload, _ = codec.encode(g, (), s)
            return codec.decode(payload, tuple(g.shape), tf.float32)

        seeds = tf.stack([tf.range(samples), tf.fill([samples], 3)], 1)
        return tf.map_fn(one, seeds, fn_output_signature=tf.float32)

    drawn = draw().numpy().astype(np.float64)
    return drawn.mean(0), drawn.std(0) / math.sqrt(samples)


def variance(codec, g):
    """Of each element, from the definition of the codec."""
    if isinstance(codec, Ternary):
        scale = np.abs(g).max()
        return np.abs(g) * (scale - np.abs(g))
    if isinstance(codec, RandomK):
        return g**2 * (strata.lengths(g.size, round(codec.ratio * g.size)).numpy().max() - 1)
    if isinstance(codec, Int8):
        return np.full_like(g, (np.abs(g).max() / 127) ** 2 / 4)
    return np.zeros_like(g)


@pytest.mark.parametrize("codec", [c for c in PLAIN if not c.biased and not c.matrices], ids=name)
def test_unbiased_codecs_are_unbiased(codec):
    g = normal((100,), 8)
    mean, _ = mean_and_error(codec, tf.constant(g))
    # Five standard errors of a mean of 2000, whose chance is below 1e-6 an element,
    # and the rounding of the shorter floats, which count as unbiased.
    rounding = 2.0**-8 if isinstance(codec, BFloat16) else 2.0**-11
    bound = 5 * np.sqrt(variance(codec, g) / 2000) + rounding * np.abs(g)
    assert (np.abs(mean - g) <= bound + 1e-6).all()


def test_hash_is_uniform_and_its_neighbours_independent():
    draws = np.stack([hashing.uniform(seed(s), (4096,)) for s in range(64)])
    assert draws.min() >= 0 and draws.max() < 1
    count = draws.size
    assert abs(draws.mean() - 0.5) < 5 * math.sqrt(1 / 12 / count)
    cells, _ = np.histogram(draws, 256, (0, 1))
    expected = count / 256
    # Chi-squared of 255 degrees: mean 255, deviation sqrt(2 * 255).
    assert ((cells - expected) ** 2 / expected).sum() < 255 + 5 * math.sqrt(510)
    centred = draws - 0.5
    for a, b in [(centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])]:
        assert abs((a * b).mean() * 12) < 5 / math.sqrt(a.size)
