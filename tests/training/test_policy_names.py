"""Policies as texts name them, and which settings they refuse."""

import keras
import pytest

import tfps
from tfps.training import consistency

PARSED = {
    "async": consistency.Async(),
    "async:staleness_scaling=true": consistency.Async(True),
    "bounded:2": consistency.BoundedStaleness(2),
    "bounded:2,true": consistency.BoundedStaleness(2, True),
    "sync": consistency.Sync(),
    " Sync:1": consistency.Sync(1),
}


@pytest.mark.parametrize("text", PARSED)
def test_policies_have_names(text):
    assert consistency.parse(text) == PARSED[text]


def test_local_steps_have_names():
    policy = consistency.parse("local:16,merge=each,outer=average")
    assert (policy.steps, policy.merge, policy.outer) == (16, "each", tfps.ModelAverage())
    policy = consistency.parse("local:16")
    assert (policy.steps, policy.merge) == (16, "round")
    assert isinstance(policy.outer, keras.optimizers.SGD)
    assert policy.outer.nesterov
    outer = consistency.parse("local:16,outer=sgd:1.5:0.25").outer
    assert (float(outer.learning_rate), outer.momentum, outer.nesterov) == (1.5, 0.25, True)
    assert not consistency.parse("local:16,outer=sgd:1.5").outer.nesterov


@pytest.mark.parametrize(
    "text",
    [
        *["", "bsp", "sync:", "sync:1,2", "sync:backups=x", "sync:-1", "sync:true", "sync:1.5"],
        *["bounded", "bounded:-1", "bounded:bound=1,bound=2", "async:steps=1"],
        *["local", "local:0", "local:4,merge=none", "local:4,outer=adam", "local:4,steps=4"],
        *["local:4,outer=sgd", "local:4,outer=sgd:x", "local:4,outer=sgd:1:2:3"],
    ],
)
def test_bad_names_list_those_that_exist(text):
    with pytest.raises(tfps.ConfigError) as caught:
        consistency.parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(text) in message
    for name in ("async:staleness_scaling=False", "bounded:bound", "sync:backups=0", "local:steps"):
        assert name in message


def test_model_average_keeps_less_than_all():
    with pytest.raises(tfps.ConfigError, match=r"decay=1\.0 must be at least 0 and below 1"):
        tfps.ModelAverage(1.0)


@pytest.mark.parametrize(
    ("outer", "message"),
    [
        (keras.optimizers.SGD(0.7, clipnorm=1.0), r"outer=SGD has clipnorm=1\.0"),
        (keras.optimizers.AdamW(weight_decay=0.1), r"outer=AdamW has weight_decay=0\.1"),
        (keras.optimizers.Adam(use_ema=True), "outer=Adam has use_ema=True"),
        (keras.optimizers.Adafactor(), "outer=Adafactor must be an elementwise optimizer"),
    ],
)
def test_outer_optimizers_that_differences_do_not_suit(outer, message):
    with pytest.raises(tfps.ConfigError, match=message):
        tfps.LocalSteps(4, outer=outer)
