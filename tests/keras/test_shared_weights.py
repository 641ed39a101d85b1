"""Two Trainers, or one Trainer and a submodel of it, that have variables in common."""

import functools

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import mlp, regression


def head_of(model):
    """A compiled model of the first layers of another one."""
    head = keras.Sequential(model.layers[:-1])
    head.compile("sgd", "mse")
    return head


def predict_anew(model, strategy, x):
    return tfps.Trainer(model, strategy).predict(x, verbose=0)


class Predicting(keras.callbacks.Callback):
    """What predictions of a model that shares weights are after each batch."""

    def __init__(self, predict, x):
        super().__init__()
        self.predict, self.x, self.seen = predict, x, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.predict(self.x))


@pytest.mark.parametrize("made", ["before", "in the hook"])
def test_a_hook_predicts_with_a_model_that_shares_weights(connect, made):
    strategy = connect()
    x, y = regression(48)
    seen = []
    for run in ("tfps", "keras"):
        model = mlp()
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        head = head_of(model)
        one = tfps.Trainer(model, strategy) if run == "tfps" else model
        if run == "keras":
            predict = functools.partial(head.predict, verbose=0)
        elif made == "before":
            second = tfps.Trainer(head, strategy)
            second.predict(x[:4], verbose=0)
            predict = functools.partial(second.predict, verbose=0)
        else:
            predict = functools.partial(predict_anew, head, strategy)
        callback = Predicting(predict, x[:4])
        one.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[callback])
        seen.append(callback.seen)
    np.testing.assert_allclose(*seen, rtol=1e-4, atol=1e-6)


def test_a_hook_may_not_train_a_model_that_shares_weights(connect):
    strategy = connect()
    x, y = regression(16)
    model = mlp()
    model.compile("sgd", "mse")
    head = head_of(model)

    def train(*_):
        with pytest.raises(tfps.ConfigError, match="another Trainer"):
            tfps.Trainer(head, strategy).fit(x, np.zeros([16, 16]), verbose=0)

    hook = keras.callbacks.LambdaCallback(on_epoch_end=train)
    trainer = tfps.Trainer(model, strategy)
    trainer.fit(x, y, epochs=2, verbose=0, callbacks=[hook])
    assert int(model.optimizer.iterations) == 2
