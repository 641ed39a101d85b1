"""What a real training writes to its ledger."""

import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp
from tfps.cluster import members
from tfps.cluster.members import Task
from tfps.ledger import check
from tfps.store.actors import Actors, _Life
from tfps.store.server_loop import ServerLoop
from tfps.store.snapshot_folder import Folder
from tfps.training import snapshot_writer

RECORDS = 67
X = np.random.default_rng(0).normal(size=(RECORDS, 8)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)

LOCAL = tfps.LocalSteps(3, outer="average", merge="each")


def arrays():
    return {"x": X, "y": Y, "batch_size": 4}


def uneven(context):
    """A dataset of a length that nobody knows before."""
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).shard(2, context.worker_index)
    return dataset.filter(lambda x, y: True).batch(4)


def split(bounds):
    return tf.data.Dataset.from_tensor_slices((X[slice(*bounds)], Y[slice(*bounds)])).batch(4)


SPLITS = tfps.data.Splits([(0, 9), (9, 40), (40, RECORDS)], split)


@pytest.mark.parametrize(
    ("arguments", "data", "steps"),
    [
        ({}, {"x": uneven}, 3),
        ({"overlap": 2}, arrays(), 1),
        ({"overlap": 1, "consistency": tfps.BoundedStaleness(1)}, {"x": SPLITS}, 3),
        ({"consistency": tfps.Sync()}, {"x": uneven}, 1),
        ({"consistency": LOCAL}, arrays(), 1),
    ],
    ids=["async", "overlap", "splits", "rounds", "local steps"],
)
def test_each_record_is_noted_once(connect, tmp_path, arguments, data, steps):
    model = mlp()
    model.compile("sgd", "mse", steps_per_execution=steps)
    trainer = tfps.Trainer(model, connect(2, 2), ledger=tmp_path, **arguments)
    trainer.fit(**data, epochs=2, verbose=0)
    expected = [f"each of {2 * RECORDS} records once on each of 2 ps"]
    assert check(tmp_path) == (expected, 0)


def test_what_backups_drop_is_told(connect, tmp_path):
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect(2, 2), tfps.Sync(backups=1), ledger=tmp_path)
    trainer.fit(**arrays(), verbose=0)
    (line,), code = check(tmp_path)
    assert code == 0 and "dropped by policy (late)" in line


def test_a_cut_is_noted_before_its_snapshot_can_be_complete(connect, tmp_path, monkeypatch):
    """A chief that is killed in between would leave a snapshot that the ledger does not know."""
    noted = []

    class Waited(threading.Thread):
        """Writes a snapshot before its `start` returns."""

        def start(self):
            super().start()
            self.join()

    def complete(self, id, *args):
        noted.append(str(id) in (tmp_path / "ledger" / "chief-1.jsonl").read_text())
        return commit(self, id, *args)

    commit = Folder.commit
    monkeypatch.setattr(Folder, "commit", complete)
    threads = types.SimpleNamespace(Thread=Waited, current_thread=threading.current_thread)
    monkeypatch.setattr(snapshot_writer, "threading", threads)
    model = mlp()
    model.compile("sgd", "mse")
    snapshots = tfps.Snapshots(tmp_path / "snapshots", every=None, every_updates=4)
    trainer = tfps.Trainer(model, connect(1), ledger=tmp_path / "ledger", snapshots=snapshots)
    x, y = np.ones([24, 8], np.float32), np.ones([24, 1], np.float32)
    trainer.fit(x, y, batch_size=2, verbose=0)
    assert len(noted) >= 3 and all(noted)


def test_without_a_ledger_the_graph_has_no_operation_for_it(connect, tmp_path):
    def operations(ledger):
        model = mlp()
        model.compile("sgd", "mse")
        trainer = tfps.Trainer(model, connect(1, 2), ledger=ledger)
        trainer.fit(**arrays(), verbose=0)
        (side,) = trainer.state._sides.values()
        graph = side.pusher.loop(0)._run.graph.as_graph_def()
        return {node.op for function in graph.library.function for node in function.node_def}

    assert "PrintV2" not in operations(None)
    assert "PrintV2" in operations(tmp_path)


def shown(folder, tag):
    """The lines of a text in TensorBoard's files, without the time of day."""
    (path,) = folder.iterdir()
    for record in tf.data.TFRecordDataset(str(path)):
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
            if value.tag == tag:
                return [line.split(b" ", 1)[1] for line in tf.make_ndarray(value.tensor).tolist()]
    return None


@pytest.mark.parametrize("broken", [False, True])
def test_a_push_that_comes_after_its_fence(connect, tmp_path, monkeypatch, broken):
    """A worker is taken for lost while its push is on its way."""
    late = threading.Event()
    fenced, over = threading.Event(), threading.Event()
    fence = Actors.fence

    def fence_and_wait(self, worker, life):
        told = fence(self, worker, life)
        fenced.set()
        assert over.wait(30)
        return told

    monkeypatch.setattr(Actors, "fence", fence_and_wait)
    if broken:
        monkeypatch.setattr(
            _Life, "end_on", lambda self, p: None
        )  # The loop answers this life, too.
        present = lambda self, roll, header: tf.constant(True)  # noqa: E731
        monkeypatch.setattr(ServerLoop, "_is_present", present)
    strategy = connect(2, 2)
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, strategy, ledger=tmp_path)
    calls = trainer._session.calls
    submit = calls.submit

    def submit_late(worker, function, tag=None):
        def call():
            if worker == 1 and isinstance(tag, tuple) and not late.is_set():
                late.set()
                members.of(strategy.cluster).lose(Task("worker", 1), "is tested")
                assert fenced.wait(30)
                try:
                    return function()
                finally:
                    over.set()
            return function()

        submit(worker, call, tag)

    calls.submit = submit_late
    board = keras.callbacks.TensorBoard(tmp_path / "board")
    trainer.fit(**arrays(), verbose=0, callbacks=[board])
    lines, code = check(tmp_path)
    text = "\n".join(lines)
    if not broken:
        assert text == f"each of {RECORDS} records once on each of 2 ps; 1 late push refused"
        assert code == 0
        counts = {"lost_workers": 1, "refused_pushes": 1, "lost_residuals": 0}
        assert {name: trainer.stats[name] for name in counts} == {n: [c] for n, c in counts.items()}
        first, *more = shown(tmp_path / "board" / "tfps", "losses")
        assert first == b"worker 1 was lost; 1 go on"
        # It is there, so it comes back if there is time.
        assert more in ([], [b"worker 1 takes part again"])
        return
    assert code == 1
    assert "applied after its worker was fenced off" in text and "doubled: batch" in text
