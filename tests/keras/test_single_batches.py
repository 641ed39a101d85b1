"""`train_on_batch`, `test_on_batch` and `predict_on_batch`, beside Keras's."""

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import Counting, mlp, regression, relative_error

o = keras.optimizers


def pair(strategy, make=lambda: mlp(batch_norm=True), optimizer=lambda: o.Adam(0.01), **given):
    """(a Trainer, plain Keras), with the same weights."""
    made = []
    for run in ("tfps", "keras"):
        keras.utils.set_random_seed(1)
        model = make()
        arguments = {"loss": "mse", "metrics": ["mae"], "jit_compile": False, **given}
        model.compile(optimizer(), **arguments)
        made.append(tfps.Trainer(model, strategy) if run == "tfps" else model)
    return made


def batches(sizes=(16, 16, 16, 10, 16)):
    """Five batches, of which one is smaller."""
    x, y = regression(sum(sizes))
    ends = np.cumsum(sizes)
    return [(x[end - n : end], y[end - n : end]) for n, end in zip(sizes, ends, strict=True)]


def test_successive_calls(connect):
    trainer, reference = pair(connect(), optimizer=lambda: o.Adam(0.01, use_ema=True))
    reference.stop_training = trainer.model.stop_training = True  # Of no concern to single batches.
    for x, y in batches():
        mine, theirs = (one.train_on_batch(x, y) for one in (trainer, reference))
        assert isinstance(mine, list)
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
        mine, theirs = (one.test_on_batch(x, y, return_dict=True) for one in (trainer, reference))
        assert list(mine) == list(theirs) == ["loss", "mae"]
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-5)
        mine, theirs = (one.predict_on_batch(x) for one in (trainer, reference))
        assert isinstance(mine, np.ndarray)
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    assert relative_error(trainer.model, reference) < 1e-5
    assert int(trainer.model.optimizer.iterations) == int(reference.optimizer.iterations) == 5
    assert trainer.model.stop_training
    slots = zip(trainer.model.optimizer.variables, reference.optimizer.variables, strict=True)
    for a, b in slots:
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-7)


def test_weights_of_examples_and_classes(connect):
    def make():
        return keras.Sequential([mlp(), keras.layers.Activation("sigmoid")])

    trainer, reference = pair(connect(), make, loss="binary_crossentropy", metrics=None)
    x, y = regression(32)
    y = (y > 0).astype("int32")[:, 0]
    weights = np.linspace(0, 2, 32, dtype="float32")
    for given in ({"sample_weight": weights}, {"class_weight": {0: 0.5, 1: 3.0}}):
        mine, theirs = (one.train_on_batch(x, y, **given) for one in (trainer, reference))
        assert np.ndim(mine) == np.ndim(theirs) == 0
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    tested = [one.test_on_batch(x, y, sample_weight=weights) for one in (trainer, reference)]
    np.testing.assert_allclose(*tested, rtol=1e-5)
    assert relative_error(trainer.model, reference) < 1e-5
    with pytest.raises(ValueError, match="cannot be specified at the same time"):
        trainer.train_on_batch(x, y, sample_weight=weights, class_weight={0: 1.0, 1: 2.0})


class OwnLoss(keras.Sequential):
    """Its steps return a loss that no metric has seen."""

    def train_step(self, data):
        return {"loss": 2.0 * super().train_step(data)["loss"]}

    def test_step(self, data):
        return {"loss": 3.0 * super().test_step(data)["loss"]}


def test_what_own_steps_return_is_returned(connect):
    trainer, reference = pair(
        connect(), lambda: OwnLoss([keras.Input([8]), keras.layers.Dense(1)]), metrics=None
    )
    for x, y in batches()[:2]:
        for method in ("train_on_batch", "test_on_batch"):
            mine, theirs = (getattr(one, method)(x, y) for one in (trainer, reference))
            np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_between_calls_of_fit(connect):
    """A change of weights on the chief counts, too."""
    x, y = regression(48)
    trainer, reference = pair(connect())
    for one in (trainer, reference):
        model = getattr(one, "model", one)
        one.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        one.train_on_batch(x[:16], y[:16])
        model.layers[0].set_weights([0.5 * w for w in model.layers[0].get_weights()])
        one.train_on_batch(x[16:32], y[16:32])
        one.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert relative_error(trainer.model, reference) < 1e-5
    assert int(trainer.model.optimizer.iterations) == 8


@pytest.mark.parametrize(
    "policy", [tfps.Async(), tfps.Sync(), tfps.LocalSteps(2)], ids=lambda p: type(p).__name__
)
def test_a_batch_is_trained_on_once(connect, policy):
    """Whatever the policy is, one of two workers makes one update."""
    model = Counting.compiled(o.SGD(1.0))
    trainer = tfps.Trainer(model, connect(2, 2), policy)
    for count in range(1, 4):
        trainer.train_on_batch(np.zeros((4, 1), "float32"), np.zeros((4, 1), "float32"))
        assert int(model.batches) == count


def test_in_a_hook_of_fit_it_is_refused(connect):
    x, y = regression(16)
    trainer, _ = pair(connect())
    hook = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: trainer.train_on_batch(x, y))
    with pytest.raises(tfps.ConfigError, match="while fit runs"):
        trainer.fit(x, y, verbose=0, callbacks=[hook])


def test_with_snapshots_it_is_refused(connect, tmp_path):
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect(), snapshots=tmp_path)
    with pytest.raises(tfps.ConfigError, match="a Trainer without snapshots"):
        trainer.train_on_batch(*regression(16))


def test_several_inputs_in_a_list(connect):
    def make():
        inputs = [keras.Input([8]), keras.Input([8])]
        return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Add()(inputs)))

    trainer, reference = pair(connect(), make)
    x, y = regression(16)
    mine, theirs = (one.train_on_batch([x, 2 * x], y) for one in (trainer, reference))
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    mine, theirs = (one.predict_on_batch([x, x]) for one in (trainer, reference))
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
