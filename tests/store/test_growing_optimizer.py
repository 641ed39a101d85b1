"""A table that grows with an optimizer of its own, beside `MultiOptimizer` in plain Keras."""

import keras
import numpy as np
import pytest

import tfps
from tests.store.test_growing import CLOSE, FIT, assert_alike, by_key, compiled, data

o = keras.optimizers


def halving(optimizer):
    def halve(epoch, logs):
        optimizer.learning_rate = float(optimizer.learning_rate) / 2

    return keras.callbacks.LambdaCallback(on_epoch_end=halve)


def test_rows_have_an_optimizer_of_their_own(connect, tmp_path):
    own, chosen = o.Adagrad(0.1), o.OptimizerMap(o.Adam(0.01))
    chosen["h/.*"] = theirs = o.Adagrad(0.1)
    served = compiled(o.Adam(0.01), optimizer=own)
    plain = compiled(o.MultiOptimizer(chosen))
    trainer = tfps.Trainer(served[0], connect())
    for fit, optimizer in ((trainer.fit, own), (plain[0].fit, theirs)):
        fit(*data(), epochs=2, callbacks=[halving(optimizer)], **FIT)
    assert float(own.learning_rate) == pytest.approx(0.025)
    held = [by_key(layer, one)[1] for (_, layer), one in ((served, own), (plain, theirs))]
    assert len(held[0]) == len(held[1]) == 3  # Rows, counts and accumulators.
    for a, b in zip(*held, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)
    for a, b in zip(served[0].get_weights()[1:], plain[0].get_weights()[1:], strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)
    # The model's file has the accumulators, and training goes on with them.
    served[0].save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    again = tfps.Trainer(loaded, connect())
    for fit in (trainer.fit, again.fit):
        fit(*data(), **FIT)
    assert_alike((loaded, loaded.get_layer("h")), served, **CLOSE)
    with pytest.warns(UserWarning, match=r"h has optimizer=Adagrad, .*MultiOptimizer"):
        loaded.fit(*data(), **FIT)


@pytest.mark.parametrize(
    ("own", "remedy"),
    [
        (o.LossScaleOptimizer(o.SGD(0.1)), "must be a plain optimizer"),
        (o.SGD(0.1, loss_scale_factor=2.0), "no loss_scale_factor"),
        (o.Lamb(0.1), "an elementwise optimizer such as Adam"),
    ],
)
def test_what_an_optimizer_of_rows_may_not_be(connect, own, remedy):
    model, _ = compiled("sgd", optimizer=own)
    with pytest.raises(tfps.ConfigError, match=remedy):
        tfps.Trainer(model, connect()).fit(*data(), **FIT)
