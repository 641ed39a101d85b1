"""Snapshots: training that is cut off anywhere goes on where it was, bit by bit."""

import contextlib
import os
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.training.test_training_state import CASES, compiled, data, soak
from tfps.training import snapshotter

o = keras.optimizers


class Killed(BaseException):
    """Stands for the end of the chief's process."""


class KillAt(keras.callbacks.Callback):
    """Ends `fit` after a batch, as a signal would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.at[0] and batch >= self.at[1]:
            raise Killed


def killed(trainer, *args, at, **kwargs):
    """Trains until the chief is killed after a batch; what was begun is written."""
    with pytest.raises(Killed):
        trainer.fit(*args, verbose=0, callbacks=[KillAt(*at)], **kwargs)
    trainer._snapshotter.wait()


def trainer_on(connect, case, seed, folder, ps=2, workers=None, **settings):
    policy, usual, arguments = CASES[case]
    strategy = connect(workers=workers or usual, ps=ps)
    snapshots = tfps.Snapshots(folder, **{"every": None, "every_updates": 3, **settings})
    return tfps.Trainer(compiled(seed), strategy, policy(), **arguments, snapshots=snapshots)


def assert_equal(one, other):
    for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c == "feedback" else soak) for c in CASES]
)
def test_the_same_program_goes_on_in_the_middle_of_an_epoch(connect, tmp_path, capfd, case):
    whole = trainer_on(connect, case, 1, tmp_path / "whole")
    expected = whole.fit(data(), epochs=3, verbose=0).history
    killed(trainer_on(connect, case, 1, tmp_path / "cut"), data(), epochs=3, at=(1, 7))
    again = trainer_on(connect, case, 2, tmp_path / "cut")
    history = again.fit(data(), epochs=3, verbose=0)
    assert "goes on from snapshot-000001-" in capfd.readouterr().err
    assert history.epoch == [0, 1, 2]
    assert_equal(again, whole)
    for name, values in expected.items():
        np.testing.assert_array_equal(history.history[name], values)
    assert again.model.optimizer.iterations == whole.model.optimizer.iterations


BATCHES = 10


class Powers(keras.utils.PyDataset):
    """Batch i is 2^i."""

    def __len__(self):
        return BATCHES

    def __getitem__(self, i):
        return np.full([1, 1], 2.0**i, np.float32), np.zeros([1, 1], np.float32)


def powers():
    return np.exp2(np.arange(BATCHES, dtype=np.float32))[:, None]


def dataset():
    return tf.data.Dataset.from_tensor_slices((powers(), powers())).batch(1)


INPUTS = {
    "arrays": lambda: {"x": powers(), "y": powers(), "batch_size": 1},
    "arrays shuffled in batches": lambda: {
        "x": powers(), "y": powers(), "batch_size": 1, "shuffle": "batch"
    },
    "py dataset": lambda: {"x": Powers()},
    "py dataset in threads": lambda: {"x": Powers(workers=2)},
    "dataset": lambda: {"x": dataset()},
    "dataset that shuffles": lambda: {"x": dataset().shuffle(8, seed=3)},
    "part of a pass": lambda: {"x": dataset().repeat(), "steps_per_epoch": 7},
    "dataset_fn": lambda: {"x": lambda context: dataset()},
    "dataset_fn, part of a pass": lambda: {
        "x": lambda context: dataset().shuffle(8, seed=3).repeat(), "steps_per_epoch": 7
    },
}  # fmt: skip


class Seen(keras.callbacks.Callback):
    """Notes which batches there were, by epoch."""

    def __init__(self):
        super().__init__()
        self.batches = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.before = epoch, float(self.model.get_weights()[0][0, 0])

    def on_train_batch_end(self, batch, logs=None):
        now = float(self.model.get_weights()[0][0, 0])
        self.batches.setdefault(self.epoch, []).append(self.before - now)
        self.before = now


def summing(strategy, folder, **settings):
    """A trainer of one weight, from which every batch takes its own number."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input([1]), layer])
    model.compile(o.SGD(1.0), loss=lambda y, p: p, jit_compile=False)
    settings = {"every": None, "every_updates": 3, **settings}
    return tfps.Trainer(model, strategy, snapshots=tfps.Snapshots(folder, **settings))


LIGHT = "arrays", "py dataset"


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in LIGHT else soak) for k in INPUTS]
)
def test_every_batch_is_used_once_in_the_order_of_the_unbroken_run(connect, tmp_path, kind):
    strategy, whole, rest = connect(workers=1, ps=1), Seen(), Seen()
    inputs = INPUTS[kind]
    unbroken = summing(strategy, tmp_path / "whole")
    unbroken.fit(**inputs(), epochs=3, verbose=0, callbacks=[whole])
    killed(summing(strategy, tmp_path / "cut"), **inputs(), epochs=3, at=(1, 4))
    again = summing(strategy, tmp_path / "cut")
    again.fit(**inputs(), epochs=3, verbose=0, callbacks=[rest])
    assert_equal(again, unbroken)
    # The last cut was after 12 or 15 of the batches, of which the second epoch had some.
    assert 0 < len(rest.batches[1]) < len(whole.batches[1])
    assert rest.batches[1] == whole.batches[1][-len(rest.batches[1]) :]
    assert rest.batches[2] == whole.batches[2]
    if kind in ("dataset that shuffles", *LIGHT):
        assert whole.batches[1] != whole.batches[2]
    if "part" not in kind:
        assert sorted(whole.batches[2]) == list(powers()[:, 0])


@pytest.mark.parametrize(("workers", "ps"), [(1, 2), pytest.param(2, 1, marks=soak)])
def test_another_number_of_workers_and_servers(connect, tmp_path, workers, ps):
    """Two workers have trained until the chief was killed; each batch has its own power of two."""
    killed(summing(connect(workers=2, ps=1), tmp_path), dataset(), epochs=2, at=(0, 7))
    again = summing(connect(workers=workers, ps=ps), tmp_path)
    history = again.fit(dataset(), epochs=2, verbose=0)
    assert again.model.get_weights()[0] == -2 * (2**BATCHES - 1)
    assert history.epoch == [0, 1]


def test_another_layout_on_the_servers(connect, tmp_path):
    """Slots and state are dealt out by variable; with one worker that changes no bit."""
    whole = trainer_on(connect, "async", 1, tmp_path / "whole")
    whole.fit(data(), epochs=2, verbose=0)
    killed(trainer_on(connect, "async", 1, tmp_path / "cut"), data(), epochs=2, at=(1, 5))
    strategy = connect(workers=1, ps=2, partitioner=tfps.partitioners.FixedShards(2))
    snapshots = tfps.Snapshots(tmp_path / "cut", every=None, every_updates=3)
    again = tfps.Trainer(compiled(2), strategy, snapshots=snapshots)
    again.fit(data(), epochs=2, verbose=0)
    assert_equal(again, whole)


def test_carried_metrics_go_on(connect, tmp_path):
    """A metric whose state is no sum is carried by its worker from cut to cut."""

    class Largest(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="largest")
            self.most = self.add_variable((), initializer="zeros", name="most")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.most.assign(keras.ops.maximum(self.most, keras.ops.max(y_true)))

        def result(self):
            return self.most

    def trainer():
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
        model.compile(o.SGD(1e-6), "mse", metrics=[Largest()], jit_compile=False)
        snapshots = tfps.Snapshots(tmp_path, every=None, every_updates=3)
        return tfps.Trainer(model, connect(workers=1), snapshots=snapshots)

    falling = powers()[::-1].copy()
    killed(trainer(), falling, falling, batch_size=1, shuffle=False, at=(0, 6))
    logs = trainer().fit(falling, falling, batch_size=1, shuffle=False, verbose=0).history
    assert logs["largest"] == [2.0 ** (BATCHES - 1)]


def as_another_process(monkeypatch):
    """What was saved so far was saved by another process, which did not end in order."""
    monkeypatch.setattr(snapshotter, "_ours", set())


def test_a_fit_that_had_ended_is_not_run_again(connect, tmp_path, monkeypatch, capfd):
    """A program of three fits is killed in the second one, and then once more after it."""
    strategy = connect(workers=1, ps=1)

    def run(*kills):
        """The program: returns (epochs and losses of each fit, weight, trainer)."""
        trainer = summing(strategy, tmp_path)
        histories = []
        for fit, epochs in enumerate([2, 3, 1]):
            callbacks = [KillAt(*kills[1:])] if kills and fit == kills[0] else []
            h = trainer.fit(dataset(), epochs=epochs, verbose=0, callbacks=callbacks)
            histories.append((h.epoch, h.history["loss"]))
        return histories, float(trainer.model.get_weights()[0][0, 0]), trainer

    expected, weight, trainer = run()
    assert weight == -6 * (2**BATCHES - 1)
    # A trainer of the same process that has ended: the next one begins afresh.
    with pytest.raises(Killed):
        run(1, 1, 5)
    capfd.readouterr()
    as_another_process(monkeypatch)
    with pytest.raises(Killed):
        run(2, 0, 1)
    said = capfd.readouterr().err
    assert "fit number 1 had ended before" in said and "epoch 2, batch" in said
    as_another_process(monkeypatch)
    again, now, trainer = run()
    assert "fit number 2 had ended before" in capfd.readouterr().err
    assert (again, now) == (expected, weight)
    # The program has ended in order, though it was another process.
    as_another_process(monkeypatch)
    trainer._snapshotter._folder.end(trainer._snapshotter._incarnation)
    assert run()[:2] == (expected, weight)
    assert "goes on" not in capfd.readouterr().err


def newest(folder, ending):
    """The file of the newest snapshot with this ending."""
    return max(p for p in folder.iterdir() if p.name.endswith(ending))


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit in the values": lambda f: flip(newest(f, "ps-0.data-00000-of-00001"), 2),
    "a flipped bit in an index": lambda f: flip(newest(f, "ps-0.index"), 30),
    "a flipped bit of the chief's": lambda f: flip(newest(f, "chief.data-00000-of-00001"), 9),
    "a flipped bit in the manifest": lambda f: flip(max(f.glob("snapshot-*.json")), 50),
    "a part that is cut off": lambda f: (p := newest(f, "ps-0.index")).write_bytes(
        p.read_bytes()[:-1]
    ),
    "a part that is gone": lambda f: newest(f, "ps-0.data-00000-of-00001").unlink(),
}


def test_the_one_before_is_used_instead_of_one_that_is_damaged(connect, tmp_path, capfd):
    strategy = connect(workers=1, ps=1)
    for i, (name, damage) in enumerate(DAMAGES.items()):
        folder = tmp_path / str(i)
        killed(summing(strategy, folder), dataset(), epochs=2, at=(1, 6))
        damage(folder)
        capfd.readouterr()
        again = summing(strategy, folder)
        again.fit(dataset(), epochs=2, verbose=0)
        said = capfd.readouterr().err
        assert "is left out, and the one before it is taken" in said, name
        assert "goes on from snapshot-000001-000005" in said, name
        assert again.model.get_weights()[0] == -2 * (2**BATCHES - 1), name


def test_nothing_begins_anew_by_itself_if_all_snapshots_are_damaged(connect, tmp_path):
    strategy = connect(workers=1, ps=1)
    killed(summing(strategy, tmp_path), dataset(), at=(0, 8))
    for path in tmp_path.glob("*.data-*"):
        flip(path, 0)
    with pytest.raises(tfps.SnapshotDamaged, match=r"none of the 2 snapshots.*delete the folder"):
        summing(strategy, tmp_path).fit(dataset(), verbose=0)


def test_a_chief_that_thaws_beside_its_successor_writes_nothing(connect, tmp_path):
    strategy = connect(workers=1, ps=1)
    old = summing(strategy, tmp_path)

    class Succeeded(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                old._snapshotter.wait()
                summing(strategy, tmp_path)._snapshotter.begin_fit()
                self.before = set(tmp_path.iterdir())

    succeeded = Succeeded()
    with pytest.raises(tfps.Superseded, match="give each its own folder") as caught:
        old.fit(dataset(), verbose=0, callbacks=[succeeded])
    assert tfps.exit_codes.of(caught.value) == tfps.exit_codes.LOST
    assert set(tmp_path.iterdir()) == succeeded.before


def test_as_many_are_kept_as_were_asked_for(connect, tmp_path):
    trainer = summing(connect(workers=1, ps=1), tmp_path, every_updates=2, keep=3)
    trainer.fit(dataset(), verbose=0)
    kept = sorted({p.name[:22] for p in tmp_path.glob("snapshot-*")})
    assert kept == [f"snapshot-000001-{n:06d}" for n in (5, 6, 7)]
    assert len(list(tmp_path.glob("snapshot-*"))) == 3 * 5


def test_time_decides_by_default(connect, tmp_path):
    trainer = summing(connect(workers=1, ps=1), tmp_path, every=0, every_updates=None)
    trainer.fit(dataset(), epochs=3, verbose=0)
    assert int(max(p.name for p in tmp_path.glob("snapshot-*"))[16:22]) > 2


def test_a_snapshot_of_another_model_is_refused(connect, tmp_path):
    killed(summing(connect(workers=1, ps=1), tmp_path), dataset(), at=(0, 5))
    other = tfps.Trainer(compiled(1), connect(workers=1, ps=1), snapshots=tmp_path)
    with pytest.raises(tfps.ConfigError, match=r"does not go with this program.*another folder"):
        other.fit(data(), verbose=0)


def test_settings():
    for wrong in ({"directory": ""}, {"directory": 3}, {"every": -1}, {"keep": 0}, {"every": None}):
        with pytest.raises(tfps.ConfigError):
            tfps.Snapshots(**{"directory": "x", **wrong})
    with pytest.raises(tfps.ConfigError, match="every_updates"):
        tfps.Snapshots("x", every_updates=1.5)


@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_no_end(connect, tmp_path, capfd):
    """There is room for one snapshot; training goes on, and that one stays."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", folder], check=True)
    try:
        whole = summing(connect(workers=1, ps=1), folder)
        full = folder / "ballast"

        class Fill(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if batch == 4:
                    whole._snapshotter.wait()
                    with contextlib.suppress(OSError):
                        full.write_bytes(bytes(1 << 20))
                if batch == 8:
                    whole._snapshotter.wait()
                    full.unlink()

        whole.fit(dataset(), verbose=0, callbacks=[Fill()])
        said = capfd.readouterr().err
        assert "snapshot-000001-000003 could not be written" in said
        assert "snapshot-000001-000002 stays the newest" in said
        assert whole.model.get_weights()[0] == -(2**BATCHES - 1)
        assert not list(folder.glob("snapshot-000001-000003.*"))
        # The end is saved, for there is room again.
        assert len(list(folder.glob("snapshot-*.json"))) == 2
    finally:
        subprocess.run(["umount", folder], check=True)


def test_residuals_go_on_with_other_workers_and_servers(connect, tmp_path, recwarn):
    """No gradient is lost: once all residuals are sent, each batch has been applied."""

    def trainer(workers, ps):
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input([8]), layer])
        model.compile(o.SGD(1.0), loss=lambda y, p: 8.0 * p, jit_compile=False)
        snapshots = tfps.Snapshots(tmp_path, every=None, every_updates=3)
        codec = tfps.compression.TopK(0.25, min_bytes=0)
        strategy = connect(workers=workers, ps=ps)
        return tfps.Trainer(model, strategy, push=codec, snapshots=snapshots)

    x = np.exp2(np.arange(80) % 8).reshape([10, 8]).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(1)
    killed(trainer(2, 1), data, at=(0, 7))
    again = trainer(1, 2)
    again.fit(data, verbose=0)
    (left,) = again.state.export().workers["gradients"]
    kept = sum(leaf.reshape([-1]) for leaf in tf.nest.flatten(left.residuals))
    weights = again.model.get_weights()[0][:, 0]
    np.testing.assert_array_equal(-weights + kept, 8 * x.sum(0))
    assert not [w for w in recwarn if "begin" in str(w.message)]
