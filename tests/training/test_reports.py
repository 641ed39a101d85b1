"""When the chief learns what calls came to, and that it makes no difference to what it learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tests.covering import covering
from tfps.worker.tally import Report

BATCHES = 20


@pytest.fixture
def brought(monkeypatch):
    """The workers of all reports that are brought to the chief."""
    found = []
    of = Report.of.__func__

    def noted(cls, vector, shapes, worker=0):
        found.append(worker)
        return of(cls, vector, shapes, worker)

    monkeypatch.setattr(Report, "of", classmethod(noted))
    return found


def arrays():
    return regression(10 * BATCHES)


def known(context):
    return tf.data.Dataset.from_tensor_slices(arrays()).batch(10)


def unknown(context):
    return known(context).filter(lambda x, y: True)


def endless(context):
    return known(context).repeat()


class Looks(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        assert logs["loss"] > 0

    def on_test_batch_end(self, batch, logs=None):
        assert logs["loss"] > 0


def fitted(connect, x, callbacks=(), policy=None, overlap=0, workers=1, steps=1, **arguments):
    model = mlp()
    model.compile(
        keras.optimizers.SGD(0.05), "mse", metrics=["mae"], steps_per_execution=steps
    )  # fmt: skip
    trainer = tfps.Trainer(model, connect(workers=workers), policy, overlap=overlap)
    if x is arrays:
        x, arguments["y"] = arrays()
        arguments.update(batch_size=10, shuffle=False)
    history = trainer.fit(x, verbose=0, callbacks=list(callbacks), epochs=2, **arguments)
    return history.history, model.get_weights()


@covering("x, steps", [arrays, known, endless], [1, 3], strength=1)
def test_a_report_stays_until_the_end_of_an_epoch(connect, brought, x, steps):
    limits = {"steps_per_epoch": BATCHES} if x is endless else {}
    logs, weights = fitted(connect, x, steps=steps, **limits)
    # A dataset of known length is asked once more, for its end.
    assert len(brought) <= 2 * 2
    expected, others = fitted(connect, x, [Looks()], steps=steps, **limits)
    assert len(brought) >= 2 * -(-BATCHES // steps)
    for name in expected:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-6)
    for mine, theirs in zip(weights, others, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    "x, policy, overlap",
    [
        (unknown, None, 0),
        (known, None, 2),
        pytest.param(arrays, tfps.Sync(), 0, marks=pytest.mark.soak),
        pytest.param(arrays, None, 1, marks=pytest.mark.soak),
    ],
)
def test_the_logs_are_those_of_keras(connect, x, policy, overlap):
    logs, _ = fitted(connect, x, policy=policy, overlap=overlap)
    model = mlp()
    rate = 0.05
    model.compile(keras.optimizers.SGD(rate), "mse", metrics=["mae"])
    expected = model.fit(*arrays(), batch_size=10, shuffle=False, epochs=2, verbose=0).history
    # With overlap, gradients miss updates.
    for name in expected:
        np.testing.assert_allclose(logs[name], expected[name], rtol=0.2 if overlap else 1e-4)


def test_several_workers_report_all_batches(connect, brought):
    x, y = arrays()
    model = mlp()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    trainer = tfps.Trainer(model, connect(workers=2))
    loss = trainer.fit(x, y, batch_size=10, verbose=0).history["loss"][0]
    assert 1 <= len(brought) <= 2
    np.testing.assert_allclose(loss, model.evaluate(x, y, verbose=0), rtol=1e-5)
    assert trainer.state.updates() == BATCHES


def test_evaluation_too(connect, brought):
    x, y = arrays()
    model = mlp()
    model.compile("sgd", "mse", metrics=["mae"])
    trainer = tfps.Trainer(model, connect(workers=1))
    mine = trainer.evaluate(x, y, batch_size=10, verbose=0)
    assert len(brought) == 1
    np.testing.assert_allclose(mine, model.evaluate(x, y, verbose=0), rtol=1e-5)
    trainer.evaluate(x, y, batch_size=10, verbose=0, callbacks=[Looks()])
    assert len(brought) == 1 + BATCHES
