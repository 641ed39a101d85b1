"""Where a callback stops what goes on, and where a generator is when validation begins."""

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import mlp, regression, relative_error


class Stopping(keras.callbacks.Callback):
    """Stops at a hook, and notes which batches have ended.

    Attributes:
      ended: the indices of the batches, in the order of their hooks.
    """

    def __init__(self, hook, what):
        super().__init__()
        self.ended: list[int] = []
        setattr(self, hook, lambda *_, **__: setattr(self.model, what, True))

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(batch)

    on_test_batch_end = on_predict_batch_end = on_train_batch_end


def compiled(**args):
    model = mlp()
    model.compile(keras.optimizers.SGD(0.05), "mse", **args)
    return model


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_train_batch_begin"])
def test_an_epoch_that_is_stopped_before_has_one_batch(connect, workers, hook):
    x, y = regression(64)
    models, found = [], []
    for run in ("tfps", "keras"):
        model, callback = compiled(), Stopping(hook, "stop_training")
        one = tfps.Trainer(model, connect(workers)) if run == "tfps" else model
        args = {"batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}
        history = one.fit(x, y, callbacks=[callback], **args)
        models.append(model)
        found.append((history.epoch, callback.ended, int(model.optimizer.iterations)))
    assert found[0] == found[1] == ([0], [0], 1)
    assert relative_error(*models) < 1e-5


@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_stopped_before_evaluates_and_predicts_one_call(connect, steps):
    x, y = regression(64)
    results, hooks = [], []
    for run in ("tfps", "keras"):
        model = compiled(steps_per_execution=steps)
        one = tfps.Trainer(model, connect(2)) if run == "tfps" else model
        tests = Stopping("on_test_begin", "stop_evaluating")
        predicts = Stopping("on_predict_begin", "stop_predicting")
        args = {"batch_size": 8, "verbose": 0}
        loss = one.evaluate(x, y, callbacks=[tests], **args)
        results.append([loss, one.predict(x, callbacks=[predicts], **args)])
        hooks.append((tests.ended, predicts.ended))
    assert hooks[0] == hooks[1] == ([steps - 1], [steps - 1])
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    assert len(results[0][1]) == 8 * steps


def test_a_generator_validates_from_where_it_is_after_the_epoch(connect):
    x, y = regression(64)
    losses = []
    for run in ("tfps", "keras"):
        model = compiled()
        one = tfps.Trainer(model, connect()) if run == "tfps" else model
        batches = ((x[:8], y[:8] + n) for n in range(100))
        # Whoever has read of the generator by the end of the epoch is not the validation.
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda *_, batches=batches, **__: next(batches)
        )
        history = one.fit(
            x, y, batch_size=8, verbose=0, shuffle=False, callbacks=[callback],
            validation_data=batches, validation_steps=2,
        )  # fmt: skip
        losses.append(history.history["val_loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)
