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


@pytest.mark.parametrize(
    ("push", "nbytes"), [(Halves(min_bytes=0), 4 * 81), (Small(), 161)], ids=["subclass", "plain"]
)
def test_trains_with_it(connect, push, nbytes):
    """`Halves` is biased, so that feedback sends the other halves; signs go as they are."""
    x, y = regression()
    model = mlp()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    before = model.get_weights()
    trainer = tfps.Trainer(model, connect(), push=push)
    history = trainer.fit(x, y, batch_size=32, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    # Two servers hold four variables of 161 elements in buckets; odd ones are rounded up.
    assert nbytes <= history["push_bytes_per_step"][-1] <= nbytes + 4 * 4
    for after, old in zip(model.get_weights(), before, strict=True):
        moved = np.abs(after - old)
        assert (moved > 0).all()
        if isinstance(push, Small):  # 30 steps of 0.01 or nothing, forward or back.
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
