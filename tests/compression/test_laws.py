"""Laws that every codec obeys."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.compression.codecs import SHAPES, TABLE, each, nbytes, normal, run, seed
from tfps import compression
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
    base,
)


def test_the_table_has_every_public_codec():
    public = {getattr(compression, n) for n in compression.__all__}
    classes = {c for c in public if isinstance(c, type) and issubclass(c, base.Codec)}
    assert classes - {base.Codec} == {type(c) for c in TABLE}


def test_exports_exist_and_are_sorted_out():
    assert len(set(compression.__all__)) == len(compression.__all__)
    assert all(hasattr(compression, n) for n in compression.__all__)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each
def test_shape_survives_and_payload_is_as_predicted(codec, shape):
    # One step more than the warm-up of any.
    arrived, payloads, state = run(codec, [normal(shape, i) for i in range(2)])
    assert all(tuple(a.shape) == shape and np.isfinite(a).all() for a in arrived)
    assert nbytes(payloads[-1]) == codec.payload_bytes(shape, tf.float32)
    before = [(s.shape, s.dtype) for s in codec.initial_state(shape)]
    assert [(s.shape, s.dtype) for s in state] == before


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float32, tf.float64])
@each
def test_dtype_survives(codec, dtype):
    shape = (40, 26)
    arrived, payloads, _ = run(codec, [normal(shape)] * 2, dtype)
    assert all(a.dtype == dtype for a in arrived)
    assert np.isfinite(tf.cast(arrived[0], tf.float32)).all()
    assert nbytes(payloads[-1]) == codec.payload_bytes(shape, dtype)


@each
def test_zeros_arrive_as_zeros(codec):
    for shape in [(1,), (1025,), (30, 50)]:
        arrived, _, state = run(codec, [np.zeros(shape, np.float32)] * 2)
        assert not np.any(arrived[-1])
        assert all(np.isfinite(s).all() for s in state)


@each
def test_extreme_magnitudes_do_no_lasting_harm(codec):
    unit = normal((30, 40))
    for scale in (1e-42, 1e18, 3e38):
        g = np.float32(scale) * (unit / np.abs(unit).max())
        arrived, _, state = run(codec, [g, g])
        # Unbiased random-k and the products of PowerSGD may overflow by themselves.
        if scale < 1e30 or not isinstance(codec, (RandomK, PowerSGD)):
            assert np.isfinite(arrived[0]).all(), scale
        if keeps_residual(codec) and scale < 1e30:
            assert all(np.isfinite(s).all() for s in state), scale


def keeps_residual(codec):
    return isinstance(codec, (ErrorFeedback, DGC))


@each
def test_compiles_once_for_all_steps(codec):
    shape = (30, 50) if codec.matrices else (1025,)
    traces = []

    @tf.function(jit_compile=codec.jit, autograph=False)
    def encode(g, state, seed):
        traces.append("encode")
        return codec.encode(g, state, seed)

    # A payload whose size changes would be compiled anew for each.
    static = not (isinstance(codec, DGC) and codec.warmup)

    @tf.function(jit_compile=static, autograph=False, reduce_retracing=not static)
    def decode(payload):
        traces.append("decode")
        return codec.decode(payload, shape, tf.float32)

    state = codec.initial_state(shape)
    for step in range(5):
        payload, state = encode(tf.constant(normal(shape, step)), state, seed(step))
        arrived = decode(payload)
        plain = codec.decode(payload, shape, tf.float32)
        np.testing.assert_allclose(arrived, plain, rtol=1e-5, atol=1e-5)
    assert traces.count("encode") == 1
    assert traces.count("decode") == 1 if static else traces.count("decode") <= 2


@each
def test_equal_settings_are_equal(codec):
    init = {f.name: getattr(codec, f.name) for f in dataclasses.fields(codec) if f.init}
    again = type(codec)(**init)
    assert again == codec and hash(again) == hash(codec)
    assert len({c for c in TABLE if c == codec}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        codec.min_bytes = 1


@each
def test_small_variables_are_left_alone_by_default(codec):
    assert codec.min_bytes == base.MIN_BYTES


def test_feedback_keeps_the_size_limit_of_its_codec():
    assert ErrorFeedback(Int8(min_bytes=10)).min_bytes == 10


@each
def test_sending_weights(codec):
    inner = codec.codec if keeps_residual(codec) and hasattr(codec, "codec") else codec
    plain = not keeps_residual(codec) and isinstance(inner, (Identity, Float16, BFloat16, Int8))
    assert (codec.not_for_weights is None) == plain


def test_rows_of_embeddings_have_a_stateless_codec():
    assert Identity().for_rows() == Identity()
    assert Float16().for_rows(weights=True) == Float16()
    for codec in TABLE:
        if not isinstance(codec, (Identity, Float16, BFloat16, ErrorFeedback)):
            assert codec.for_rows() == base.RowInt8("stochastic")
            assert codec.for_rows(weights=True) == base.RowInt8("nearest")
    assert ErrorFeedback(OneBit()).for_rows() == base.RowInt8("stochastic")


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_rows_may_be_unknown_in_number(rounding):
    codec = base.RowInt8(rounding)

    @tf.function(input_signature=[tf.TensorSpec([None, 16])], autograph=False)
    def both(rows):
        payload, _ = codec.encode(rows, (), seed())
        return payload, codec.decode(payload, (None, 16), tf.float32)

    for n in (0, 1, 5):
        rows = normal((n, 16))
        payload, arrived = both(rows)
        assert nbytes(payload) == codec.payload_bytes((n, 16), tf.float32)
        level = np.abs(rows).max(1, initial=0, keepdims=True) / 127
        limit = 1.001 if rounding == "stochastic" else 0.501
        assert (np.abs(arrived - rows) <= limit * level).all()
