"""Codecs that a user writes, in training."""

import keras
import numpy as np
import pytest

import tfps
from tests.compression.codecs import Halves, Signed
from tests.conftest import mlp, regression


class Small(Signed):
    """For variables of any size."""

    min_bytes = 0


class Listed(Small):
    """Compared by value, but not hashed."""

    def __eq__(self, other):
        return type(other) is type(self)


def moves(connect, push):
    """(how far each weight moved in 30 steps with a rate of 0.01, the history)."""
    x, y = regression()
    model = mlp()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    before = model.get_weights()
    trainer = tfps.Trainer(model, connect(), push=push, log_stats=True)
    history = trainer.fit(x, y, batch_size=32, epochs=3, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    pairs = zip(model.get_weights(), before, strict=True)
    return np.concatenate([np.ravel(after - old) for after, old in pairs]), history


def test_trains_with_a_subclass(connect):
    """It sends every second element, so these weights move and no others."""
    moved, history = moves(connect, Halves(min_bytes=0))
    sent = history["push_bytes_per_step"][-1] / 4
    assert 81 <= sent <= 84  # Of 161, rounded up for each bucket.
    assert np.count_nonzero(moved) == sent


def test_trains_with_a_class_of_the_contract_alone(connect):
    """It sends signs, so weights move by whole steps."""
    moved, history = moves(connect, Small())
    assert history["push_bytes_per_step"][-1] == 161
    assert np.count_nonzero(moved) > 80
    np.testing.assert_allclose(moved / 0.01, np.round(moved / 0.01), atol=1e-3)


def test_a_codec_that_cannot_be_hashed_is_named(connect):
    x, y = regression()
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect(), push=Listed())
    with pytest.raises(tfps.ConfigError, match=r"cannot be hashed.*Listed a dataclass\(frozen"):
        trainer.fit(x, y, verbose=0)


def test_a_class_is_no_codec(connect):
    x, y = regression()
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect(), push=lambda variable: Small)
    with pytest.raises(tfps.ConfigError, match="must be a codec"):
        trainer.fit(x, y, verbose=0)


def test_settings_of_a_subclass_that_is_no_dataclass_count():
    class Plain(tfps.compression.Codec):
        def __init__(self, every):
            super().__init__()
            self.every = every

        encode = decode = payload_bytes = None

    assert Plain(2) == Plain(2) != Plain(3)
    assert hash(Plain(2)) == hash(Plain(2))
