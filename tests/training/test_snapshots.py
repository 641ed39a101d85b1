"""Snapshots: training that is cut off anywhere goes on where it was, bit by bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.training.test_training_state import CASES, compiled, data, soak


class Killed(BaseException):
    """Stands for the end of the chief's process."""


class KillAt(keras.callbacks.Callback):
    """Ends `fit` in the middle, as a signal would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.at[0] and batch >= self.at[1]:
            raise Killed


def trainer_on(connect, case, seed, folder, ps=2, workers=None, **settings):
    policy, usual, arguments = CASES[case]
    strategy = connect(workers=workers or usual, ps=ps)
    snapshots = tfps.Snapshots(folder, **{"every": None, "every_updates": 3, **settings})
    return tfps.Trainer(compiled(seed), strategy, policy(), **arguments, snapshots=snapshots)


def assert_equal(one, other):
    for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c == "feedback" else soak) for c in CASES])
def test_the_same_program_goes_on_in_the_middle_of_an_epoch(connect, tmp_path, capfd, case):
    whole = trainer_on(connect, case, 1, tmp_path / "whole")
    expected = whole.fit(data(), epochs=3, verbose=0).history
    first = trainer_on(connect, case, 1, tmp_path / "cut")
    with pytest.raises(Killed):
        first.fit(data(), epochs=3, verbose=0, callbacks=[KillAt(1, 7)])
    first._snapshotter.wait()
    again = trainer_on(connect, case, 2, tmp_path / "cut")
    history = again.fit(data(), epochs=3, verbose=0)
    assert "goes on from snapshot-000001-" in capfd.readouterr().err
    assert history.epoch == [0, 1, 2]
    assert_equal(again, whole)
    for name, values in expected.items():
        np.testing.assert_array_equal(history.history[name], values)
    assert again.model.optimizer.iterations == whole.model.optimizer.iterations
