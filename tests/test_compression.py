"""Laws that every codec obeys, and what is particular to each."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from tfps import compression, errors
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
    base,
    blocks,
    hashing,
    parse,
    strata,
    with_feedback,
)

PLAIN = [
    Identity(),
    Float16(),
    BFloat16(),
    Int8(),
    Int8("stochastic", block=100),
    Ternary(),
    OneBit(),
    TopK(0.05),
    RandomK(0.1),
    RandomK(0.3, unbiased=False),
    PowerSGD(2),
]
WRAPPED = [
    ErrorFeedback(c) for c in (Float16(), Int8(), OneBit(), TopK(0.05), RandomK(0.3), PowerSGD(2))
]
DGCS = [DGC(0.05), DGC(0.05, momentum=0.0, warmup=1)]
TABLE = [*PLAIN, *WRAPPED, *DGCS]
SHAPES = [(1,), (7,), (8,), (1023,), (1025,), (30, 50), (3, 4, 5, 20), (1, 40)]


def name(codec):
    if isinstance(codec, ErrorFeedback):
        return f"feedback-{name(codec.codec)}"
    fields = [f.name for f in dataclasses.fields(codec) if not f.kw_only]
    return "-".join([type(codec).__name__, *(str(getattr(codec, f)) for f in fields)])


each = pytest.mark.parametrize("codec", TABLE, ids=name)


def seed(step=0, tensor=0):
    return tf.constant([step, tensor], tf.int32)


def normal(shape, key=0):
    return np.random.default_rng(key).normal(size=shape).astype(np.float32)


def nbytes(payload):
    return sum(int(tf.size(t)) * t.dtype.size for t in payload)


def run(codec, gradients, dtype=tf.float32):
    """Encodes and decodes step by step: what arrived, the payloads, the last state."""
    shape = gradients[0].shape
    state = codec.initial_state(shape)
    arrived, payloads = [], []
    for step, g in enumerate(gradients):
        payload, state = codec.encode(tf.cast(g, dtype), state, seed(step))
        arrived.append(codec.decode(payload, shape, dtype))
        payloads.append(payload)
    return arrived, payloads, state


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


# What is kept back


@pytest.mark.parametrize("codec", [*WRAPPED, DGC(0.05, momentum=0.0)], ids=name)
def test_nothing_is_lost(codec):
    shape = (30, 50)
    state = codec.initial_state(shape)
    for step in range(6):
        g = normal(shape, step)
        residual = state[1] if isinstance(codec, DGC) else state[0]
        payload, state = codec.encode(tf.constant(g), state, seed(step))
        left = state[1] if isinstance(codec, DGC) else state[0]
        sent = codec.decode(payload, shape, tf.float32)
        np.testing.assert_allclose(sent + left, g + residual, rtol=1e-5, atol=1e-5)


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


# Expectation


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


# Particular codecs


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


def low_rank(rank, shape=(60, 40)):
    return normal((shape[0], rank), 1) @ normal((rank, shape[1]), 2)


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

    @tf.function(autograph=False)
    def step(x, state, s):
        payload, state = codec.encode(curvature * (x - target), state, s)
        return x - 0.05 * codec.decode(payload, shape, tf.float32), state

    x, state = tf.zeros(shape), codec.initial_state(shape)
    for i in range(700):
        x, state = step(x, state, seed(i))
    assert np.linalg.norm(x - target) < 0.02 * np.linalg.norm(target)


# Rows


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


# Settings


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: Int8("up"), "up"),
        (lambda: Int8(block=0), "0"),
        (lambda: Ternary(block=2.5), "2.5"),
        (lambda: OneBit(block=-1), "-1"),
        (lambda: TopK(0), "0"),
        (lambda: TopK(1.5), "1.5"),
        (lambda: TopK("x"), "x"),
        (lambda: RandomK(-1), "-1"),
        (lambda: RandomK(0.1, unbiased=3), "3"),
        (lambda: DGC(0.01, momentum=1.0), "1.0"),
        (lambda: DGC(0.01, momentum="x"), "x"),
        (lambda: DGC(0.01, warmup=-1), "-1"),
        (lambda: PowerSGD(0), "0"),
        (lambda: TopK(0.1, min_bytes="x"), "x"),
        (lambda: Identity(feedback=2), "2"),
        (lambda: ErrorFeedback("topk"), "topk"),
        (lambda: ErrorFeedback(DGC(0.1)), "DGC"),
        (lambda: ErrorFeedback(ErrorFeedback(OneBit())), "OneBit"),
        (lambda: with_feedback(Ternary(feedback=True)), "Ternary"),
    ],
)
def test_wrong_settings_are_named(make, value):
    with pytest.raises(errors.ConfigError, match=value) as e:
        make()
    assert "\n" not in str(e.value) and "; " in str(e.value)


def test_feedback_is_on_exactly_for_biased_codecs():
    for codec in PLAIN:
        assert isinstance(with_feedback(codec), ErrorFeedback) == codec.biased
    assert with_feedback(OneBit(feedback=False)) == OneBit(feedback=False)
    assert isinstance(with_feedback(Float16(feedback=True)), ErrorFeedback)
    assert with_feedback(DGC(0.1)) == DGC(0.1)
    assert with_feedback(ErrorFeedback(OneBit())) == ErrorFeedback(OneBit())


def test_feedback_never_scales_up():
    assert not with_feedback(RandomK(0.1, feedback=True)).codec.unbiased


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("identity", Identity()),
        ("none", Identity()),
        ("float16", Float16()),
        ("bfloat16", BFloat16()),
        ("int8", Int8()),
        ("int8:stochastic", Int8("stochastic")),
        ("int8:block=256", Int8(block=256)),
        ("ternary", Ternary()),
        ("onebit", OneBit()),
        ("topk:0.01", TopK(0.01)),
        ("topk:0.01,min_bytes=0,feedback=False", TopK(0.01, min_bytes=0, feedback=False)),
        ("randomk:0.1", RandomK(0.1)),
        (" RandomK: 0.1, unbiased=False ", RandomK(0.1, unbiased=False)),
        ("dgc:0.01", DGC(0.01)),
        ("dgc:0.01,momentum=0.9,warmup=100", DGC(0.01, 0.9, 100)),
        ("powersgd:4", PowerSGD(4)),
    ],
)
def test_codecs_have_names(text, codec):
    assert parse(text) == codec


BAD = [
    "",
    "zip",
    "topk",
    "topk:2",
    "topk:",
    "int8:up",
    "dgc:0.1,rank=2",
    "powersgd:1,2",
    "float16:1",
]


@pytest.mark.parametrize("text", [*BAD, "topk:0.1,ratio=0.2", "topk:ratio=0.1,0.2"])
def test_unknown_names_list_those_that_exist(text):
    with pytest.raises(errors.ConfigError) as e:
        parse(text)
    message = str(e.value)
    assert repr(text) in message and "\n" not in message
    assert all(part in message for part in ("topk:ratio", "int8:rounding=nearest", "onebit"))


def test_seeds_make_different_payloads():
    for codec in (Int8("stochastic"), Ternary(), RandomK(0.1)):
        g = tf.constant(normal((1000,)))
        payloads = [codec.encode(g, (), seed(s, t))[0][0] for s, t in [(0, 0), (0, 1), (1, 0)]]
        for a, b in itertools.combinations(payloads, 2):
            assert (a.numpy() != b.numpy()).any()
