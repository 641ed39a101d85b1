"""How codecs are named and set up."""

import itertools

import pytest
import tensorflow as tf

from tests.compression.codecs import PLAIN, normal, seed
from tfps import errors
from tfps.compression import (
    DGC,
    Auto,
    BFloat16,
    Difference,
    ErrorFeedback,
    Float16,
    Identity,
    Int8,
    OneBit,
    PowerSGD,
    RandomK,
    Ternary,
    TopK,
    TwoBit,
    parse,
    with_feedback,
)


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
        (lambda: TwoBit(block=0), "0"),
        (lambda: Difference(Identity()), "Identity"),
        (lambda: Difference(DGC(0.1)), "DGC"),
        (lambda: Difference(PowerSGD(2)), "PowerSGD"),
        (lambda: Difference(Difference(OneBit())), "OneBit"),
        (lambda: Difference(OneBit(), refresh=0), "refresh=0"),
        (lambda: Difference(OneBit(), whole_until=-1), "whole_until=-1"),
        (lambda: Difference(OneBit(), max_bytes=True), "max_bytes=True"),
        (lambda: parse("difference:onebit,refresh=x"), "refresh='x'"),
        (lambda: parse("difference:zip"), "zip"),
        (lambda: parse("difference"), "difference"),
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
        ("twobit:64", TwoBit(64)),
        ("difference:twobit", Difference(TwoBit())),
        (
            "difference:onebit,refresh=9,block=64,whole_until=5,min_bytes=7",
            Difference(OneBit(block=64, min_bytes=7), refresh=9, whole_until=5),
        ),
        ("difference:topk:0.1", Difference(TopK(0.1))),
        ("auto", Auto()),
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
