"""Keras callbacks through `Trainer.fit`."""

import csv
import glob
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tfps.training.callbacks import has_batch_hooks, may_look_secretly

c = keras.callbacks
o = keras.optimizers


def trainer(strategy, optimizer=None, **compile_args):
    model = mlp()
    model.compile(optimizer or o.SGD(0.1), "mse", metrics=["mae"], **compile_args)
    return tfps.Trainer(model, strategy)


class Calls(c.Callback):
    """Records every hook, with its index."""

    reads_weights = False

    def __init__(self):
        super().__init__()
        self.calls = []


def _record(name):
    def hook(self, *args, **kwargs):
        self.calls.append((name, *(a for a in args if isinstance(a, int))))

    return hook


for hook_name in [n for n in dir(c.Callback) if n.startswith("on_")]:
    setattr(Calls, hook_name, _record(hook_name))


def names(calls):
    return [call[0] for call in calls]


def test_hooks_are_those_of_keras_in_their_order(connect):
    x, y = regression(80)
    both = []
    for run in ("tfps", "keras"):
        t = trainer(connect(), steps_per_execution=2, jit_compile=False)
        calls = Calls()
        fit = t.fit if run == "tfps" else t.model.fit
        fit(
            x,
            y,
            batch_size=20,
            epochs=2,
            validation_data=(x, y),
            callbacks=[calls],
            verbose=0,
        )
        both.append(calls.calls)
    assert names(both[0]) == names(both[1])
    batches = [[call for call in calls if "batch" in call[0]] for calls in both]
    assert batches[0] == batches[1]


def test_batch_hooks_see_the_weights_of_their_batch(connect):
    x, y = regression(60)
    seen = {}
    for run in ("tfps", "keras"):
        t = trainer(connect(), jit_compile=False)
        weights = []
        watch = c.LambdaCallback(
            on_train_batch_end=lambda b, logs, t=t, w=weights: w.append(t.model.get_weights()[0])
        )
        fit = t.fit if run == "tfps" else t.model.fit
        fit(x, y, batch_size=20, shuffle=False, callbacks=[watch], verbose=0)
        seen[run] = weights
    assert len(seen["tfps"]) == 3
    for a, b in zip(seen["tfps"], seen["keras"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_weights_set_by_a_callback_are_trained_on(connect):
    x, y = regression(40)
    t = trainer(connect(), o.SGD(0.0))
    zero = [np.zeros_like(w) for w in t.model.get_weights()]
    reset = c.LambdaCallback(on_epoch_end=lambda e, logs: t.model.set_weights(zero))
    t.fit(x, y, epochs=2, callbacks=[reset], verbose=0)
    t._session.served.store.fetch()
    assert not any(w.any() for w in t.model.get_weights())


def test_weights_set_at_the_beginning_of_an_epoch_are_trained_on(connect):
    x, y = regression(40)
    t = trainer(connect(), o.SGD(0.0))
    ones = [np.ones_like(w) for w in t.model.get_weights()]
    t.fit(
        x,
        y,
        callbacks=[c.LambdaCallback(on_epoch_begin=lambda e, logs: t.model.set_weights(ones))],
        verbose=0,
    )
    assert all((w == 1).all() for w in t.model.get_weights())


def test_model_checkpoint(connect, tmp_path):
    x, y = regression(60)
    t = trainer(connect())
    path = str(tmp_path / "{epoch}.weights.h5")
    best = str(tmp_path / "best.keras")
    t.fit(
        x,
        y,
        epochs=2,
        callbacks=[
            c.ModelCheckpoint(path, save_weights_only=True),
            c.ModelCheckpoint(best, monitor="loss", save_best_only=True),
            c.ModelCheckpoint(
                str(tmp_path / "batch.weights.h5"), save_freq=1, save_weights_only=True
            ),
        ],
        verbose=0,
    )
    final = t.model.get_weights()
    other = mlp()
    for name in ("2.weights.h5", "batch.weights.h5"):
        other.load_weights(str(tmp_path / name))
        for a, b in zip(other.get_weights(), final, strict=True):
            np.testing.assert_array_equal(a, b)
    other.load_weights(str(tmp_path / "1.weights.h5"))
    assert not np.array_equal(other.get_weights()[0], final[0])
    loaded = keras.models.load_model(best)
    np.testing.assert_array_equal(loaded.get_weights()[0], final[0])


def test_early_stopping_restores_the_best(connect):
    x, y = regression(60)
    t = trainer(connect())
    kept = {}

    class Spoil(c.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kept["best"] = self.model.get_weights()
                self.model.optimizer.learning_rate = 1e4

    stop = c.EarlyStopping(monitor="loss", patience=1, restore_best_weights=True)
    history = t.fit(x, y, epochs=9, callbacks=[Spoil(), stop], verbose=0)
    assert len(history.epoch) < 9
    np.testing.assert_array_equal(t.model.get_weights()[0], kept["best"][0])


@pytest.mark.parametrize(
    "callback",
    [
        pytest.param(
            lambda: c.LearningRateScheduler(lambda epoch: 0.0 if epoch else 0.1),
            marks=pytest.mark.soak,
        ),
        lambda: c.ReduceLROnPlateau(monitor="loss", factor=1e-30, patience=1, min_delta=100),
    ],
)
def test_learning_rate_callbacks_reach_the_servers(connect, callback):
    x, y = regression(60)
    t = trainer(connect(), o.Adam(0.1))
    weights = []
    watch = c.LambdaCallback(on_epoch_end=lambda e, logs: weights.append(t.model.get_weights()[0]))
    history = t.fit(x, y, epochs=4, callbacks=[callback(), watch], verbose=0)
    assert not np.array_equal(weights[0], mlp().get_weights()[0])
    np.testing.assert_array_equal(weights[-1], weights[-2])
    assert history.history["learning_rate"][-1] < 1e-20


def test_learning_rate_set_at_a_batch_holds_for_the_next(connect):
    x, y = regression(60)
    t = trainer(connect())
    first = []

    class Freeze(c.Callback):
        def on_train_batch_end(self, batch, logs=None):
            first.append(self.model.get_weights()[0])
            self.model.optimizer.learning_rate = 0.0

    t.fit(x, y, batch_size=20, callbacks=[Freeze()], verbose=0)
    np.testing.assert_array_equal(first[0], t.model.get_weights()[0])


def test_terminate_on_nan_and_csv_logger(connect, tmp_path):
    x, y = regression(60)
    t = trainer(connect(), o.SGD(1e30))
    path = tmp_path / "log.csv"
    t.fit(
        x,
        y,
        batch_size=5,
        epochs=5,
        callbacks=[c.TerminateOnNaN(), c.CSVLogger(str(path))],
        verbose=0,
    )
    with open(path) as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 1
    assert rows[0]["loss"].lower() in ("nan", "inf")


@pytest.mark.parametrize("update_freq", [2, "epoch"])
def test_tensorboard_has_everything(connect, tmp_path, update_freq):
    x, y = regression(60)
    t = trainer(connect())
    t.fit(
        x,
        y,
        batch_size=20,
        epochs=3,
        validation_data=(x, y),
        callbacks=[c.TensorBoard(str(tmp_path), update_freq=update_freq)],
        verbose=0,
    )
    values = {}
    for kind in ("train", "validation", "tfps"):
        for file in glob.glob(str(tmp_path / kind / "*tfevents*")):
            for event in tf.compat.v1.train.summary_iterator(file):
                for value in event.summary.value:
                    number = value.simple_value
                    if value.HasField("tensor"):
                        number = tf.make_ndarray(value.tensor)
                    values.setdefault(f"{kind}/{value.tag}", []).append((event.step, number))
    for tag in (
        "train/epoch_loss",
        "train/epoch_mae",
        "train/epoch_learning_rate",
        "tfps/epoch_examples_per_second",
        "tfps/epoch_steps_per_second",
        "validation/epoch_loss",
    ):
        assert tag in values, sorted(values)
        assert all(np.isfinite(number) and number > 0 for _, number in values[tag])
    assert len(values["train/epoch_loss"]) == len(values["tfps/staleness"]) == 3
    assert ("train/batch_loss" in values) == (update_freq == 2)


def test_who_may_look_at_weights_unnoticed():
    assert not may_look_secretly(c.TerminateOnNaN())
    assert not may_look_secretly(c.ModelCheckpoint("x.keras", save_freq=10))
    assert may_look_secretly(c.LambdaCallback(on_epoch_end=lambda e, logs: None))
    assert not may_look_secretly(Calls())  # It says so.
    assert may_look_secretly(type("ModelCheckpoint", (c.ModelCheckpoint,), {})("x.keras"))
    assert not has_batch_hooks(c.EarlyStopping())
    assert has_batch_hooks(c.LambdaCallback(on_train_batch_end=lambda b, logs: None))


def test_a_callback_that_stops_before_the_first_batch(connect):
    x, y = regression(32)
    model = mlp()
    model.compile("sgd", "mse")
    stop = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(model, "stop_training", True)
    )
    history = tfps.Trainer(model, connect()).fit(x, y, epochs=3, callbacks=[stop], verbose=0)
    assert history.epoch == [0]


def test_evaluating_while_workers_are_busy_is_refused(connect):
    x, y = regression(64)
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect(2))
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: trainer.evaluate(x, y, verbose=0)
    )
    with pytest.raises(tfps.ConfigError, match="from on_epoch_end, not from a hook of a batch"):
        trainer.fit(x, y, batch_size=4, callbacks=[look], verbose=0)
    assert len(trainer.fit(x, y, batch_size=4, verbose=0).epoch) == 1


def test_an_error_leaves_no_file_of_stats_open(connect, tmp_path):
    def fail(epoch, logs):
        if epoch == 1:
            raise ValueError("stop here")

    x, y = regression(16)
    model = mlp()
    model.compile("sgd", "mse")
    board = c.TensorBoard(str(tmp_path), write_graph=False)
    with pytest.raises(ValueError, match="stop here"):
        tfps.Trainer(model, connect()).fit(
            x, y, epochs=2, verbose=0, callbacks=[board, c.LambdaCallback(on_epoch_begin=fail)]
        )
    mine = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert list((tmp_path / "tfps").iterdir())
    assert not [path for path in mine if path.startswith(str(tmp_path / "tfps"))]
