"""What is kept back: nothing is lost, and nothing poisoned."""

import numpy as np
import pytest
import tensorflow as tf

from tests.compression.codecs import WRAPPED, low_rank, name, normal, run, seed
from tfps.compression import DGC, BFloat16, Float16, Identity, Int8, OneBit, PowerSGD, Ternary, TopK

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", WRAPPED, ids=name)
def test_feedback_skips_what_is_not_finite(codec, bad):
    shape = (30, 50)
    _, _, state = run(codec, [normal(shape)])
    poisoned = normal(shape, 1)
    poisoned[7, 3] = bad
    payload, after = codec.encode(tf.constant(poisoned), state, seed(5))
    expected, _ = codec.encode(tf.zeros(shape), state, seed(5))
    for a, b in zip(payload, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(s).all() for s in after)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_dgc_skips_what_is_not_finite(bad):
    codec = DGC(0.01)
    _, _, (u, v, step) = run(codec, [normal((1025,))])
    poisoned = normal((1025,), 1)
    poisoned[1024] = bad
    payload, after = codec.encode(tf.constant(poisoned), (u, v, step), seed(5))
    sent = codec.decode(payload, (1025,), tf.float32)
    np.testing.assert_array_equal(sent + after[1], v)
    np.testing.assert_array_equal(after[0], np.where(sent != 0, 0, u))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", [Int8(), Int8("stochastic"), Ternary(), OneBit()], ids=name)
def test_without_feedback_a_poisoned_block_arrives_poisoned(codec, bad):
    g = normal((4096,))
    g[5] = bad
    (arrived,), _, _ = run(codec, [g])
    assert not np.isfinite(arrived[: codec.block]).any()
    assert np.isfinite(arrived[codec.block :]).all()


@pytest.mark.parametrize("codec", [Identity(), Float16(), BFloat16()], ids=name)
def test_without_feedback_casts_keep_what_is_not_finite(codec):
    g = np.array([1.0, np.nan, np.inf, -np.inf], np.float32)
    (arrived,), _, _ = run(codec, [g])
    np.testing.assert_array_equal(arrived, g)


def test_without_feedback_topk_sends_infinity_and_not_nan():
    g = normal((1025,))
    g[3], g[9] = np.nan, -np.inf
    (arrived,), _, _ = run(TopK(0.01), [g])
    assert arrived[3] == 0 and arrived[9] == -np.inf


def test_powersgd_recovers_from_what_is_not_finite():
    codec = PowerSGD(4)
    matrix = low_rank(2)
    arrived, _, _ = run(codec, [matrix, matrix * np.float32(np.nan), matrix, matrix, matrix])
    assert not np.isfinite(arrived[1]).any()
    np.testing.assert_allclose(arrived[-1], matrix, atol=1e-3)
