"""Snapshots of large tables: in pieces while training goes on, and only what has changed."""

import time

import keras
import numpy as np
import pytest

import tfps
from tests.training.test_going_back import Lose, losing  # noqa: F401  (a fixture)
from tests.training.test_snapshots import assert_equal, flip, killed
from tfps.store import snapshot_rows
from tfps.store.snapshot_folder import Folder
from tfps.store.snapshot_form import Form
from tfps.store.snapshot_places import Shared
from tfps.store.snapshot_reading import SavedServers
from tfps.training.snapshot_files import chosen, export, listed

ROWS, BATCHES = 600, 12


def embedding(kind, **settings):
    if kind == "dense":
        return keras.layers.Embedding(ROWS, 4, name="e", **settings)
    return tfps.layers.HashEmbedding(4, expected=ROWS, seed=1, name="e", **settings)


def trainer_of(kind, strategy, folder, seed=1, optimizer="adam", loss="mse", **settings):
    keras.utils.set_random_seed(seed)
    ids = keras.Input([None], dtype="int64")
    initializer = settings.pop("initializer", "uniform")
    model = keras.Model(
        ids,
        embedding(kind, embeddings_initializer=initializer)(ids)
        if kind == "dense"
        else embedding(kind, initializer=initializer)(ids),
    )
    model.compile(keras.optimizers.get(optimizer), loss, jit_compile=False)
    settings = {"every": None, "every_updates": 3, "piece_bytes": 2000, **settings}
    snapshots = tfps.Snapshots(folder, **settings)
    return tfps.Trainer(model, strategy, snapshots=snapshots, sparse_updates="lazy")


def data(step=ROWS // BATCHES):
    """Each batch has some rows of its own, and a few that many batches have."""
    x = np.arange(BATCHES * step).reshape(BATCHES, step)
    x[:, ::5] = x[:1, ::5]
    return {"x": x, "y": np.sin(x[:, :, None] + np.arange(4.0)), "batch_size": 1, "shuffle": False}


soak = pytest.mark.soak
CHANGES = "nothing", "servers", "hosts"
KINDS = pytest.mark.parametrize("kind", ["dense", "growing"])


def saved(folder):
    """(manifest, what the servers had) of each snapshot, the oldest first."""
    folder = Folder(str(folder))
    for one in reversed(listed(folder.path)):
        assert one.manifest, one.reason
        form = Form(**one.manifest.content["form"])
        yield one.manifest, SavedServers(Shared(folder, one.id), form).load()


@KINDS
def test_updates_go_on_while_a_cut_is_written_and_are_not_in_it(
    connect, tmp_path, kind, monkeypatch
):
    """Every update adds one to every row, so a cut of one moment has one value only."""
    save, seen, trainer = snapshot_rows._save, [], None

    def slowly(*args):
        time.sleep(0.02)
        seen.append(int(trainer._session.served.store.versions[0].numpy()))
        save(*args)

    monkeypatch.setattr(snapshot_rows, "_save", slowly)
    trainer = trainer_of(
        kind, connect(workers=1), tmp_path, initializer="zeros",
        optimizer=keras.optimizers.SGD(1.0, momentum=0.5), loss=lambda y, p: -p * y,
        every=0.0, every_updates=None, keep=1000,
    )  # fmt: skip
    # The gradient of a mean is a share of one.
    x = np.arange(ROWS)[None].repeat(200, 0)
    y = np.full([200, ROWS, 4], 4.0 * ROWS, np.float32)
    trainer.fit(x, y, batch_size=1, verbose=0)
    found = 0
    for _, state in saved(tmp_path):
        version = int(state.versions[0])
        momentum = row = 0.0
        for _ in range(version):
            momentum = 0.5 * momentum + 1
            row += momentum
        if kind == "dense":
            rows, slots = state.values[0], state.optimizer.slots[0]["momentums"]
            assert len(rows) == ROWS
        else:
            (table,) = state.tables.values()
            rows, slots = table.rows[""], table.rows["momentums"]
            assert len(rows) == (ROWS if version else 0)
            assert (table.meta[:, 2] == version).all()
        np.testing.assert_allclose(rows, row, rtol=1e-5)
        np.testing.assert_allclose(slots, momentum, rtol=1e-5)
        assert rows.size == 0 or rows.min() == rows.max()
        found += 1
    # There were updates while files were written.
    assert found > 3 and len(set(seen)) > found + 3


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("dense", "servers"),
        ("dense", "a lost server"),
        ("dense", "hosts"),
        ("growing", "a lost server"),
        *(
            pytest.param(*one, marks=soak)
            for one in [("dense", "nothing"), *(("growing", c) for c in CHANGES)]
        ),
    ],
)
def test_training_goes_on_bit_by_bit(connect, tmp_path, kind, change, losing):  # noqa: F811
    before, after = (2, 1) if change == "servers" else (2, 2)
    settings = {"copies": 2} if change == "hosts" else {}
    whole = trainer_of(kind, connect(ps=2), tmp_path / "whole", **settings)
    whole.fit(**data(), epochs=3, verbose=0)
    cut = trainer_of(kind, connect(ps=before), tmp_path / "cut", **settings)
    if change == "a lost server":
        cut.fit(**data(), epochs=3, verbose=0, callbacks=[Lose(cut, 1, 7, [1])])
    else:
        killed(cut, **data(), epochs=3, at=(1, 7))
        cut = trainer_of(kind, connect(ps=after), tmp_path / "cut", seed=2, **settings)
        cut.fit(**data(), epochs=3, verbose=0)
    if kind == "dense":
        assert_equal(cut, whole)
        return
    for a, b in zip(rows_of(cut), rows_of(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def rows_of(trainer):
    """(keys, rows) of a table that grows, by key."""
    keys, rows = trainer.table(trainer.model.layers[-1])
    order = np.argsort(keys)
    return keys[order], rows[order]


def own_bytes(manifest):
    """Bytes of the rows that a snapshot has written itself."""
    return sum(
        size
        for name, (size, _) in manifest.files.items()
        if name.startswith(f"{manifest.id}.ps-0.rows")
    )


@KINDS
def test_a_snapshot_has_only_what_has_changed(connect, tmp_path, kind):
    """Of 20,000 rows a tenth is changed from one cut to the next."""
    count = 20_000
    ids = keras.Input([None], dtype="int64")
    layer = (
        keras.layers.Embedding(count, 16)
        if kind == "dense"
        else tfps.layers.HashEmbedding(16, expected=count)
    )
    model = keras.Model(ids, layer(ids))
    model.compile("adam", "mse", jit_compile=False)
    snapshots = tfps.Snapshots(tmp_path, every=None, every_updates=1, keep=100, piece_bytes=400_000)
    trainer = tfps.Trainer(
        model, connect(workers=1, ps=1), snapshots=snapshots, sparse_updates="lazy"
    )
    every = np.arange(count)
    some = np.random.default_rng(0).permutation(count).reshape(10, -1)
    batches = [every, *(np.resize(one, count) for one in some[:3])]
    x = np.stack(batches)
    trainer.fit(x, np.zeros([4, count, 16], np.float32), batch_size=1, shuffle=False, verbose=0)
    sizes = [own_bytes(manifest) for manifest, _ in saved(tmp_path)]
    # The cuts until all rows had been changed have all of them.
    whole = max(sizes)
    # A table that grows has no row before the first update.
    begun = sizes[sizes[0] == 0 :]
    later = [size for size in begun if size < whole]
    assert begun == [*[whole] * (len(begun) - len(later)), *later]
    assert len(later) >= 2 and max(later) > 0 and whole > count * 16 * 4 * 3
    assert all(size <= whole / 6 for size in later), sizes


def test_files_stay_for_as_long_as_a_snapshot_needs_them(connect, tmp_path):
    """After some time a snapshot has all rows again, and what was before is deleted."""
    trainer = trainer_of("dense", connect(workers=1, ps=1), tmp_path, every_updates=1, keep=2)
    trainer.fit(**data(), epochs=3, verbose=0)
    named = {name for manifest, _ in saved(tmp_path) for name in manifest.files}
    there = {p.name for p in tmp_path.iterdir() if ".rows-" in p.name}
    assert there and there == {name for name in named if ".rows-" in name}
    lengths = [len(m.content["form"]["rows"]["0"][2]) for m, _ in saved(tmp_path)]
    assert len(lengths) == 2 and max(lengths) > 1
    assert len({p.name[:22] for p in tmp_path.iterdir() if ".rows-" in p.name}) < 20


def test_what_the_chief_writes_is_saved_as_well(connect, tmp_path):
    """It is no update, and it comes while a cut is written."""

    class Sets(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                table = self.model.layers[-1].embeddings
                table.assign(np.full(table.shape, 7.0, np.float32))

    trainer = trainer_of("dense", connect(workers=1), tmp_path, optimizer="sgd", keep=100)
    killed_at = data()
    trainer.fit(**killed_at, epochs=2, verbose=0, callbacks=[Sets()])
    *_, (_, last) = saved(tmp_path)
    np.testing.assert_array_equal(last.values[0], trainer.model.get_weights()[0])


def test_one_that_could_not_be_written_is_left_out_and_the_next_one_has_all(
    connect, tmp_path, monkeypatch, capfd
):
    save, calls = snapshot_rows._save, []

    def fails(*args):
        calls.append(1)
        if len(calls) == 40:
            raise tfps.SnapshotFailed("no room")
        save(*args)

    monkeypatch.setattr(snapshot_rows, "_save", fails)
    trainer = trainer_of("dense", connect(workers=1, ps=1), tmp_path, keep=100)
    trainer.fit(**data(), epochs=3, verbose=0)
    assert "could not be written" in capfd.readouterr().err and len(calls) > 40
    *_, (_, last) = saved(tmp_path)
    np.testing.assert_array_equal(last.values[0], trainer.model.get_weights()[0])


def test_a_damaged_file_of_rows_is_noticed(connect, tmp_path, capfd):
    """Snapshots that need it are left out; one before them is used."""
    whole = trainer_of("dense", connect(workers=1, ps=1), tmp_path / "whole")
    whole.fit(**data(), epochs=2, verbose=0)
    folder = tmp_path / "cut"
    killed(trainer_of("dense", connect(workers=1, ps=1), folder), **data(), epochs=2, at=(1, 7))
    newest = max(p.name[:22] for p in folder.glob("snapshot-*.json"))
    flip(next(iter(sorted(folder.glob(f"{newest}.ps-0.rows-*.data-*")))), 100)
    again = trainer_of("dense", connect(workers=1, ps=1), folder, seed=2)
    again.fit(**data(), epochs=2, verbose=0)
    assert f"{newest} is left out, and the one before it is taken" in capfd.readouterr().err
    assert_equal(again, whole)


@KINDS
def test_export(connect, tmp_path, kind):
    trainer = trainer_of(kind, connect(), tmp_path / "s")
    trainer.fit(**data(), epochs=2, verbose=0)
    export(str(tmp_path / "s"), chosen(str(tmp_path / "s"), None), str(tmp_path / "m.keras"))
    model = keras.models.load_model(tmp_path / "m.keras")
    x = data()["x"]
    np.testing.assert_array_equal(model.predict(x, verbose=0), trainer.model.predict(x, verbose=0))


def test_rows_for_which_a_model_has_no_room_are_said(connect, tmp_path, monkeypatch, capfd):
    trainer = trainer_of("growing", connect(), tmp_path / "s")
    trainer.fit(**data(), epochs=1, verbose=0)
    monkeypatch.setattr("tfps.embeddings.local_table.LOCAL_BYTES", 4 * 4 * 10)
    rows = len(rows_of(trainer)[0])
    left_out = f", with the 10 of {rows} rows of e/embeddings that are named most"
    name = str(tmp_path / "s")
    assert export(name, chosen(name, None), str(tmp_path / "m.keras")).endswith(left_out)
    model = trainer_of("growing", connect(), tmp_path / "other").model
    given = (data()["x"], data()["y"])
    tfps.SidecarEvaluator(model, given, name, directory=tmp_path / "e").start()
    assert f"is evaluated{left_out}; so are" in capfd.readouterr().err
