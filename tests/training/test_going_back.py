"""A lost server: its variables are made anew, and filled from the newest snapshot, within `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.training.test_snapshots import INPUTS, dataset, summing, trainer_on
from tests.training.test_training_state import CASES, data, soak
from tfps.store.model_copy import ModelCopy
from tfps.store.parameter_store import ParameterStore
from tfps.store.snapshot_folder import Folder
from tfps.training import fit_run, snapshot_writer
from tfps.training.snapshotter import GoneBack


class Lose(keras.callbacks.Callback):
    """Loses servers in the hook of a batch, once, and lets `fit` go back."""

    def __init__(self, trainer, epoch, batch, servers):
        super().__init__()
        self._trainer, self._at, self._servers = trainer, (epoch, batch), servers
        self.calls = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.calls.append(("epoch", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch ends", epoch))

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(("batch", self.epoch, batch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("batch ends", self.epoch, batch))
        if self._at and self.epoch == self._at[0] and batch >= self._at[1]:
            self._at = None
            raise Lost(self._servers)


class Lost(Exception):
    pass


@pytest.fixture
def losing(monkeypatch):
    """Where `fit` meets `Lost`, servers are made anew and training goes back."""
    from tfps.training import epoch

    run = epoch.Epoch.run

    def running(self):
        try:
            return run(self)
        except Lost as e:
            raise GoneBack(self._snapshotter.go_back(*e.args)) from e

    monkeypatch.setattr(epoch.Epoch, "run", running)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c == "local steps" else soak) for c in CASES]
)
def test_all_goes_back_and_ends_as_if_nothing_had_been_lost(connect, tmp_path, losing, case):
    """Both runs have the same cuts. No hook is called twice, and nothing is traced anew."""
    whole = trainer_on(connect, case, 1, tmp_path / "whole")
    seen = Lose(whole, None, None, [])
    seen._at = None
    expected = whole.fit(data(), epochs=3, verbose=0, callbacks=[seen]).history
    cut = trainer_on(connect, case, 1, tmp_path / "cut")
    lose = Lose(cut, 1, 7, [1])
    history = cut.fit(data(), epochs=3, verbose=0, callbacks=[lose])
    assert lose.calls == seen.calls
    assert history.epoch == [0, 1, 2]
    for a, b in zip(cut.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, values in expected.items():
        np.testing.assert_array_equal(history.history[name], values)


def test_going_back_over_the_end_of_an_epoch(connect, tmp_path, losing):
    """The newest snapshot is of the epoch before, of which no hook is called again."""
    trainer = summing(connect(workers=1, ps=1), tmp_path, every_updates=13)
    lose = Lose(trainer, 1, 1, [0])
    rates = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 1.0 + epoch)
    history = trainer.fit(
        dataset(), epochs=2, verbose=0, callbacks=[rates, lose], validation_data=dataset()
    )
    assert trainer.model.get_weights()[0] == -(1 + 2) * (2**10 - 1)
    assert [c for c in lose.calls if c[0].startswith("epoch")] == [
        ("epoch", 0), ("epoch ends", 0), ("epoch", 1), ("epoch ends", 1)
    ]  # fmt: skip
    assert len(lose.calls) == len(set(lose.calls)) == 4 + 40
    assert len(history.history["val_loss"]) == 2
    assert [epoch for epoch, _ in trainer.state.chief.history] == [0, 1]
    assert "val_loss" in trainer.state.chief.history[0][1]


class LoseAtEnd(keras.callbacks.Callback):
    """Loses a server in the hook at the end of the second epoch, or in the snapshot after it."""

    def __init__(self, trainer, at):
        super().__init__()
        self._trainer, self._at, self.calls = trainer, at, []

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("begins", epoch))
        self._lose("begins", epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("ends", epoch))
        self.model.stop_training = epoch == 2
        self._lose("ends", epoch)

    def _lose(self, *where):
        if self._at == where:
            self._at = None
            raise tfps.TaskLost("a server")


@pytest.mark.parametrize("at", [("begins", 1), ("ends", 1), ("ends", 2), "saved"])
def test_a_server_is_lost_in_a_hook_of_an_epoch(connect, tmp_path, monkeypatch, at):
    """The callbacks that had the hook called do not have it called again; the others do."""
    trainer = summing(connect(workers=1, ps=1), tmp_path, every_updates=13)
    snapshotter, run = trainer._snapshotter, fit_run.FitRun
    monkeypatch.setattr(fit_run, "recover", lambda *_: snapshotter.go_back([0]))
    if at == "saved":
        save = run._save_if_due

        def saving(self, leaving=False):
            if not leaving and self._noted.logs.keys() == {0, 1, 2} and not lost:
                lost.append(True)
                raise tfps.TaskLost("a server")
            save(self, leaving)

        monkeypatch.setattr(run, "_save_if_due", saving)
    lost, called = [], []
    before, after = (
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs, name=name: called.append((name, "begins", epoch)),
            on_epoch_end=lambda epoch, logs, name=name: called.append((name, "ends", epoch)),
        )
        for name in ("before", "after")
    )
    rates = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 1.0 + epoch)
    changed = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(
            trainer.model.optimizer, "learning_rate", 7.0 + epoch
        )
    )
    seen = []
    rate = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(float(trainer.model.optimizer.learning_rate))
    )
    lose = LoseAtEnd(trainer, at)
    history = trainer.fit(
        dataset(),
        epochs=9,
        verbose=0,
        callbacks=[rate, rates, before, changed, lose, after],
        validation_data=dataset(),
    )
    whole = [(hook, epoch) for epoch in range(3) for hook in ("begins", "ends")]
    for name in ("before", "after"):
        assert [call[1:] for call in called if call[0] == name] == whole
    twice = [] if at == "saved" else [at]
    assert lose.calls == sorted(whole + twice, key=lambda call: (call[1], call[0]))
    assert history.epoch == [0, 1, 2] and len(history.history["val_loss"]) == 3
    assert [epoch for epoch, _ in trainer.state.chief.history] == [0, 1, 2]
    assert trainer.model.get_weights()[0] == -(1 + 2 + 3) * (2**10 - 1)
    assert all(len(values) == 3 for values in trainer.stats.values())
    assert seen[1:] == [7.0, 8.0]  # The first is what the model was compiled with.


def test_the_rates_that_hooks_of_batches_have_set_are_set_again(connect, tmp_path, losing):
    class Rates(keras.callbacks.Callback):
        """Sets a rate before some batches, and another one after others."""

        def on_train_batch_begin(self, batch, logs=None):
            if batch % 3 == 0:
                self.model.optimizer.learning_rate = 1.0 + batch

        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                self.model.optimizer.learning_rate = 0.5

    strategy = connect(workers=1, ps=1)
    whole, cut = (summing(strategy, tmp_path / name, every_updates=6) for name in ("a", "b"))
    whole.fit(dataset(), epochs=2, verbose=0, callbacks=[Rates()])
    lose = Lose(cut, 1, 5, [0])
    cut.fit(dataset(), epochs=2, verbose=0, callbacks=[Rates(), lose])
    assert lose._at is None
    np.testing.assert_array_equal(cut.model.get_weights(), whole.model.get_weights())


@pytest.mark.parametrize(
    "kind",
    [
        "arrays",
        "py dataset",
        "py dataset in threads",
        "dataset that shuffles",
        "dataset_fn, part of a pass",
    ],
)
def test_the_input_goes_back(connect, tmp_path, losing, kind):
    strategy = connect(workers=1, ps=1)
    whole, cut = (summing(strategy, tmp_path / name, every_updates=6) for name in ("a", "b"))
    for trainer, lose in ((whole, None), (cut, Lose(cut, 1, 5, [0]))):
        trainer.fit(**INPUTS[kind](), epochs=3, verbose=0, callbacks=[lose] if lose else [])
    np.testing.assert_array_equal(cut.model.get_weights(), whole.model.get_weights())
    assert cut.state.chief.history == whole.state.chief.history


def test_a_lost_server_alone_has_what_it_had(connect, tmp_path):
    """The others keep what they have: here what the model's second variable was trained to."""
    trainer = trainer_on(connect, "async", 1, tmp_path)
    variables = []

    class Refill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            store = trainer._session.served.store
            mine = [i for i, b in enumerate(store.plan.buckets) if b.ps == 1]
            others = [i for i, b in enumerate(store.plan.buckets) if b.ps == 0]
            before = [store.stored[i].numpy() for i in range(len(store.stored))]
            past = trainer._snapshotter.restore_servers([1])
            saved = past.servers.load()
            after = [store.stored[i].numpy() for i in range(len(store.stored))]
            assert others and mine
            for i in others:
                np.testing.assert_array_equal(after[i], before[i])
            assert any((after[i] != before[i]).any() for i in mine)
            whole = store._layout.whole(enumerate(after))
            for v in {s.variable for i in mine for s in store.plan.buckets[i].shards}:
                if all(
                    b.ps == 1 for b in store.plan.buckets if v in {s.variable for s in b.shards}
                ):
                    np.testing.assert_array_equal(whole[v], saved.values[v])
                    variables.append(v)

    trainer.fit(data(), verbose=0, callbacks=[Refill()])
    assert variables
    # It trains on, with the handles of the new variables.
    before = trainer.model.get_weights()
    trainer.fit(data(), verbose=0)
    assert all((a != b).any() for a, b in zip(trainer.model.get_weights(), before, strict=True))
    assert np.isfinite(trainer.evaluate(data(), verbose=0))


class LoseInValidation(keras.callbacks.Callback):
    """Loses a server after a batch of the second validation, once."""

    epoch = -1

    def __init__(self, loses):
        super().__init__()
        self._left = [1] * loses

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_test_batch_end(self, batch, logs=None):
        if self._left and (self.epoch, batch) == (1, 1):
            self._left.clear()
            raise tfps.TaskLost("a server")


def test_a_validation_that_is_interrupted_begins_with_the_weights_of_training(
    connect, tmp_path, monkeypatch
):
    """`SwapEMAWeights` notes in itself that the averages are in the model."""

    def fit(name, loses):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.8)
        model.compile(optimizer, loss="mse")
        snapshots = tfps.Snapshots(tmp_path / name, every=None, every_updates=3)
        trainer = tfps.Trainer(model, connect(workers=1, ps=2), snapshots=snapshots)
        snapshotter = trainer._snapshotter
        monkeypatch.setattr(fit_run, "recover", lambda *_: snapshotter.go_back([0, 1]))
        x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
        history = trainer.fit(
            x,
            x[:, :1],
            batch_size=8,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.SwapEMAWeights(), LoseInValidation(loses)],
            validation_data=(x, x[:, 1:2]),
            validation_batch_size=8,
        )
        return model.get_weights(), [v.numpy() for v in optimizer.variables], history.history

    tf.nest.map_structure(
        np.testing.assert_array_equal, fit("lost", loses=True), fit("whole", loses=False)
    )


class Lift(keras.callbacks.Callback):
    """Changes weights in a hook of every epoch."""

    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, lambda epoch, logs=None: self.model.weights[0].assign_add([[1e6]]))


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end"])
def test_what_a_hook_of_an_epoch_assigns_is_not_lost(connect, tmp_path, losing, hook):
    trainer = summing(connect(workers=1, ps=1), tmp_path, every_updates=1000)
    callbacks = [Lift(hook), Lose(trainer, 1, 3, [0])]
    trainer.fit(dataset(), epochs=3, verbose=0, callbacks=callbacks)
    assert trainer.model.get_weights()[0] == 3e6 - 3 * (2**10 - 1)


@pytest.mark.parametrize("at", ["finalize", "fetch"])
def test_a_server_is_lost_at_the_end_of_a_fit_that_a_hook_has_stopped(
    connect, tmp_path, monkeypatch, at
):
    """The newest snapshot is of the boundary after the epoch with which training stopped."""
    trainer = summing(connect(workers=1, ps=1), tmp_path, every_updates=10)
    snapshotter = trainer._snapshotter
    monkeypatch.setattr(fit_run, "recover", lambda *_: snapshotter.go_back([0]))
    owner, name = {
        "finalize": (ParameterStore, "finalize"),
        "fetch": (ModelCopy, "fetch"),
    }[at]
    do, lost = getattr(owner, name), []

    def losing_once(self, *args):
        if not lost:
            lost.append(True)
            raise tfps.TaskLost("a server")
        return do(self, *args)

    monkeypatch.setattr(owner, name, losing_once)

    def stop(epoch, logs):
        trainer.model.stop_training = epoch == 2
        trainer.model.weights[0].assign_add([[1e6]])  # So there is a snapshot after the hook.

    history = trainer.fit(
        dataset(),
        epochs=9,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)],
    )
    assert lost and history.epoch == [0, 1, 2]
    assert trainer.model.get_weights()[0] == 3e6 - 3 * (2**10 - 1)


def test_nothing_goes_back_to_the_job_before(connect, tmp_path, monkeypatch):
    """The job before came to its end, and the first snapshot of this one cannot be written."""
    strategy = connect(workers=1, ps=1)
    summing(strategy, tmp_path).fit(dataset(), epochs=2, verbose=0)
    assert len(Folder(str(tmp_path)).complete()) > 1

    def full(*args):
        raise tfps.SnapshotFailed("the disk is full")

    monkeypatch.setattr(snapshot_writer.SnapshotWriter, "_write", full)
    trainer = summing(strategy, tmp_path)
    with pytest.raises(Lost):
        trainer.fit(dataset(), epochs=2, verbose=0, callbacks=[Lose(trainer, 0, 3, [0])])
    with pytest.raises(tfps.TaskLost, match="no snapshot of this fit"):
        trainer._snapshotter.go_back([0])
