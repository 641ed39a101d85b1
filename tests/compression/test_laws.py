"""Laws that every codec obeys."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

from tests.compression.codecs import (
    OWN,
    PUBLIC,
    SHAPES,
    TABLE,
    compiled,
    each,
    name,
    nbytes,
    normal,
    run,
    seed,
)
from tfps import compression
from tfps.compression import (
    DGC,
    BFloat16,
    Difference,
    ErrorFeedback,
    Float16,
    Identity,
    Int8,
    OneBit,
    PowerSGD,
    RandomK,
    base,
)

pytestmark = pytest.mark.usefixtures("eagerly")


def test_the_table_has_every_public_codec():
    public = {getattr(compression, n) for n in compression.__all__}
    classes = {c for c in public if isinstance(c, type) and issubclass(c, base.Codec)}
    assert classes - {base.Codec} == {type(c) for c in PUBLIC}


def test_exports_exist_and_are_sorted_out():
    assert len(set(compression.__all__)) == len(compression.__all__)
    assert all(hasattr(compression, n) for n in compression.__all__)


shapes = st.one_of(
    st.sampled_from(SHAPES),
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
dtypes = st.sampled_from([tf.bfloat16, tf.float16, tf.float32, tf.float64])
keys = st.integers(0, 1 << 31)
by_hypothesis = settings(max_examples=12, deadline=None, derandomize=True)


def specs(tensors):
    return [(t.shape, t.dtype) for t in tensors]


@each
@by_hypothesis
@given(shape=shapes, dtype=dtypes, key=keys, zeros=st.booleans())
def test_what_arrives_is_as_announced(codec, shape, dtype, key, zeros):
    """Shape and dtype survive, the payload has the predicted size, the state keeps its form."""
    # One step more than the warm-up of any.
    gradients = [np.zeros(shape, np.float32) if zeros else normal(shape, key + i) for i in range(2)]
    arrived, payloads, state = run(codec, gradients, dtype)
    assert all(tuple(a.shape) == shape and a.dtype == dtype for a in arrived)
    assert all(np.isfinite(tf.cast(a, tf.float32)).all() for a in [*arrived, *state])
    assert nbytes(payloads[-1]) == codec.payload_bytes(shape, dtype)
    assert specs(state) == specs(codec.initial_state(shape))
    if zeros:
        assert not np.any(tf.cast(arrived[-1], tf.float32))


@each
@by_hypothesis
@given(shape=shapes, key=keys)
def test_the_error_is_what_did_not_arrive(codec, shape, key):
    """`error`, which a codec may compute in a shorter way, is the tensor less what arrives."""
    if isinstance(codec, DGC):
        return  # Its payload is of the accumulated gradients.
    tensor = tf.constant(normal(shape, key))
    payload, state = codec.encode(tensor, codec.initial_state(shape), seed(key % 1000))
    arrived = codec.decode(payload, shape, tf.float32)
    error = codec.error(tensor, payload)
    assert specs([error]) == specs([tensor])
    np.testing.assert_allclose(error, tensor - arrived, rtol=1e-5, atol=1e-5)
    if isinstance(codec, ErrorFeedback):
        np.testing.assert_allclose(state[0], error, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codec", [c for c in TABLE if c.keeps_residual], ids=name)
@by_hypothesis
@given(shape=shapes, key=keys)
def test_nothing_is_lost(codec, shape, key):
    """What arrived, and the residual, are all gradients together."""
    if isinstance(codec, DGC):
        codec = dataclasses.replace(codec, momentum=0.0)
    gradients = [normal(shape, key + i) for i in range(4)]
    arrived, _, state = run(codec, gradients)
    residual = state[1] if isinstance(codec, DGC) else state[0]
    np.testing.assert_allclose(sum(arrived) + residual, sum(gradients), rtol=1e-5, atol=3e-5)


@each
@pytest.mark.parametrize("scale", [1e-42, 1e18, 3e38])
def test_extreme_magnitudes_do_no_lasting_harm(codec, scale):
    unit = normal((30, 40))
    g = np.float32(scale) * (unit / np.abs(unit).max())
    arrived, _, state = run(codec, [g, g])
    # Unbiased random-k and the products of PowerSGD may overflow by themselves.
    if scale < 1e30 or not isinstance(codec, (RandomK, PowerSGD)):
        assert np.isfinite(arrived[0]).all()
    if codec.keeps_residual and scale < 1e30:
        assert all(np.isfinite(s).all() for s in state)


@each
def test_compiles_once_for_all_steps(codec):
    """With XLA, a step is traced once, and what arrives is what arrives without XLA."""
    shape = (30, 50) if codec.matrices else (1025,)
    traces = []

    @tf.function(jit_compile=codec.jit, autograph=False)
    def encode(g, state, seed):
        traces.append("encode")
        payload, state = codec.encode(g, state, seed)
        return payload, state, codec.decode(payload, shape, tf.float32) if codec.jit else None

    # A payload whose size changes would be compiled anew for each.
    static = not (isinstance(codec, DGC) and codec.warmup)

    @tf.function(jit_compile=static, autograph=False, reduce_retracing=not static)
    def decode(payload):
        traces.append("decode")
        return codec.decode(payload, shape, tf.float32)

    state = codec.initial_state(shape)
    for step in range(3):
        with compiled():
            payload, state, arrived = encode(tf.constant(normal(shape, step)), state, seed(step))
            arrived = arrived if codec.jit else decode(payload)
        assert nbytes(payload) == codec.payload_bytes(shape, tf.float32) or not static
        plain = codec.decode(payload, shape, tf.float32)
        np.testing.assert_allclose(arrived, plain, rtol=1e-5, atol=1e-5)
    assert traces.count("encode") == 1
    assert traces.count("decode") <= 1 if static else traces.count("decode") <= 2


@each
def test_equal_settings_are_equal(codec):
    again = dataclasses.replace(codec)
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
    assert not (codec.not_for_weights and codec.is_identity)
    plain = isinstance(codec, (Identity, Float16, BFloat16, Int8, Difference))
    assert (codec.not_for_weights is None) == (plain or codec in (OWN[0], OWN[2]))


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
