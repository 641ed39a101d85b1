"""What is particular to each codec."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.compression.codecs import compiled, low_rank, name, normal, run, seed
from tfps.compression import (
    DGC,
    ErrorFeedback,
    Float16,
    Int8,
    OneBit,
    PowerSGD,
    RandomK,
    TopK,
    TwoBit,
    with_feedback,
)
from tfps.compression.kernels import blocks, strata

pytestmark = pytest.mark.usefixtures("eagerly")


def test_float16_saturates():
    g = np.array([1e6, -1e6, 65504, 70000], np.float32)
    (arrived,), _, _ = run(Float16(), [g])
    np.testing.assert_array_equal(arrived, [65504, -65504, 65504, 65504])


def test_int8_errs_by_half_a_level_at_most():
    g = normal((5000,))
    (arrived,), _, _ = run(Int8(block=1000), [g])
    layout = blocks.Blocks.of(g.shape, 1000)
    level = np.abs(layout.split(g)).max(1) / 127
    error = np.abs(layout.split(arrived - g))
    assert (error.max(1) <= level * 0.5001).all()


def test_one_bit_keeps_sign_and_mean_magnitude():
    g = normal((1500,))
    (arrived,), _, _ = run(OneBit(), [g])
    np.testing.assert_array_equal(np.sign(arrived), np.sign(g))
    np.testing.assert_allclose(np.abs(arrived).sum(), np.abs(g).sum(), rtol=1e-5)


@pytest.mark.parametrize("size", [1500, 1503])
def test_two_bits_keep_signs_and_two_means(size):
    g = normal((size,))
    (arrived,), ((_, magnitudes),), _ = run(TwoBit(block=512), [g])
    np.testing.assert_array_equal(np.sign(arrived), np.sign(g))
    layout = blocks.Blocks.of((size,), 512)
    for row, kept, (small, large) in zip(
        layout.split(g).numpy(), layout.split(arrived).numpy(), magnitudes.numpy(), strict=True
    ):
        x, kept = np.abs(row[row != 0]), np.abs(kept[row != 0])
        big = x > 1.23 * x.mean()
        np.testing.assert_allclose([small, large], [x[~big].mean(), x[big].mean()], rtol=1e-5)
        np.testing.assert_array_equal(kept, np.where(big, large, small))
    lost = np.sum((arrived - g) ** 2) / np.sum(g**2)
    assert 0.10 < lost < 0.14, "of normal elements an eighth is lost"


@pytest.mark.parametrize("n", [1, 31, 1023, 1025, 100_000])
@pytest.mark.parametrize("block", [1, 7, 256, 1024])
def test_blocks_waste_little(n, block):
    layout = blocks.Blocks.of((n,), block)
    assert n <= layout.count * layout.width < n + 32 * layout.count
    x = normal((n,))
    np.testing.assert_array_equal(layout.join(layout.split(x), (n,), tf.float32), x)


def data(kind, n=200_000):
    rng = np.random.default_rng(4)
    if kind == "normal":
        return rng.normal(size=n)
    if kind == "heavy":
        return rng.standard_t(2, size=n)
    if kind == "few values":
        return rng.choice([0.0, 1.0, -1.0, 2.0], p=[0.9, 0.05, 0.045, 0.005], size=n)
    if kind == "constant":
        return np.full(n, -3.0)
    if kind == "a few":
        return np.where(np.arange(n) % 1000 == 17, rng.normal(size=n), 0)
    if kind == "one":
        return np.where(np.arange(n) == n - 1, 1e-20, 0)
    columns = np.where(np.arange(512) == 100, 100, 1)
    return (rng.normal(size=(n // 512 + 1, 512)) * columns).ravel()[:n]


@pytest.mark.parametrize(
    "kind", ["normal", "heavy", "few values", "constant", "a few", "one", "columns"]
)
@pytest.mark.parametrize("codec", [TopK(0.01), ErrorFeedback(TopK(0.01)), DGC(0.01)], ids=name)
def test_topk_sends_nearly_the_largest(codec, kind):
    g = data(kind).astype(np.float32)
    (arrived,), ((_, indices),), _ = run(codec, [g])
    arrived = arrived.numpy()
    best = np.sort(g.astype(np.float64) ** 2)[::-1][: len(indices)].sum()
    assert (arrived.astype(np.float64) ** 2).sum() >= 0.95 * best
    np.testing.assert_array_equal(arrived[arrived != 0], g[arrived != 0])


def test_random_k_sends_one_of_each_stratum():
    n, k = 1003, 100
    chosen = strata.choose(n, k, seed()).numpy()
    ends = np.cumsum(strata.lengths(n, k).numpy())
    assert ends[-1] == n
    np.testing.assert_array_equal(np.searchsorted(ends, chosen, "right"), np.arange(k))


def test_powersgd_is_exact_on_low_rank():
    arrived, _, _ = run(PowerSGD(4), [low_rank(3)] * 3)
    np.testing.assert_allclose(arrived[-1], low_rank(3), atol=1e-3)


def test_powersgd_approaches_the_best_approximation():
    matrix = low_rank(30) + normal((60, 40), 3)
    arrived, _, _ = run(PowerSGD(4), [matrix] * 30)
    singular = np.linalg.svd(matrix, compute_uv=False)
    error = np.linalg.norm(arrived[-1] - matrix)
    assert error <= 1.02 * np.linalg.norm(singular[4:])


def test_powersgd_survives_zeros_at_first():
    arrived, _, _ = run(PowerSGD(4), [np.zeros((60, 40), np.float32)] + [low_rank(3)] * 3)
    np.testing.assert_allclose(arrived[-1], low_rank(3), atol=1e-3)


def test_powersgd_folds_to_the_smallest_factors():
    assert PowerSGD(2).payload_bytes((3, 3, 16, 32), tf.float32) == (144 + 32) * 2 * 4
    assert PowerSGD(4).payload_bytes((3, 5), tf.float32) == 15 * 4


def test_dgc_is_momentum_at_full_ratio():
    gradients = [normal((50,), i) for i in range(3)]
    arrived, _, _ = run(DGC(1.0, momentum=0.9), gradients)
    for a, g in zip(arrived, gradients, strict=True):
        np.testing.assert_allclose(a, g, rtol=1e-6)


def test_dgc_accumulates_with_momentum_what_it_does_not_send():
    g = np.array([1.0, 10.0, 0, 0], np.float32)
    arrived, _, (u, v, step) = run(DGC(0.25, momentum=0.5), [g] * 2)
    np.testing.assert_allclose(arrived[1], [0, 10, 0, 0])
    # u: 1, then 1.5; v: 1, then 2.5.
    np.testing.assert_allclose(u, [1.5, 0, 0, 0])
    np.testing.assert_allclose(v, [2.5, 0, 0, 0])
    assert step == 2


def test_dgc_warm_up_falls_from_a_quarter():
    _, payloads, _ = run(DGC(0.01, warmup=4), [normal((10_000,), i) for i in range(6)])
    sizes = [len(p[1]) for p in payloads]
    expected = [math.ceil(0.25 * 0.04 ** (t / 4) * 10_000) for t in range(4)] + [100, 100]
    np.testing.assert_allclose(sizes, expected, atol=1)


@pytest.mark.parametrize(
    "codec", [OneBit(), TopK(0.05), RandomK(0.1, unbiased=False), Int8(), PowerSGD(1)], ids=name
)
def test_a_quadratic_converges_with_feedback(codec):
    codec = with_feedback(codec)
    assert isinstance(codec, ErrorFeedback)
    shape = (40, 30)
    curvature = tf.constant(np.random.default_rng(0).uniform(0.5, 1.0, shape), tf.float32)
    target = tf.constant(normal(shape))

    def step(i, x, state):
        payload, state = codec.encode(curvature * (x - target), state, tf.stack([i, 0]))
        return i + 1, x - 0.05 * codec.decode(payload, shape, tf.float32), state

    @tf.function(autograph=False)
    def descend(x, state):
        return tf.while_loop(lambda i, *_: i < 700, step, [0, x, state])

    with compiled():
        _, x, _ = descend(tf.zeros(shape), codec.initial_state(shape))
    assert np.linalg.norm(x - target) < 0.02 * np.linalg.norm(target)
