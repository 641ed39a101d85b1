"""Tables that grow, trained on servers, against the same layer in plain Keras."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.training.test_snapshots import KillAt, Killed
from tfps.embeddings.handles import KEY
from tfps.embeddings.keys import keys_of
from tfps.store.growing import TableState

soak = pytest.mark.soak
IDS = np.random.default_rng(0).integers(-(1 << 62), 1 << 62, 60)


def compiled(compiled_with="adagrad", scale=1.0, **settings):
    keras.utils.set_random_seed(1)
    ids = keras.Input([3], dtype="int64")
    layer = tfps.layers.HashEmbedding(8, **{"expected": 200, "name": "h", **settings})
    x = keras.layers.Flatten()(layer(ids)) * scale
    model = keras.Model(ids, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.get(compiled_with), "mse")
    return model, layer


def data(shift=0):
    x = IDS[np.random.default_rng(1).integers(0, len(IDS), (96, 3))] + shift
    return x, np.sin(x[:, :1] % 7).astype(np.float32)


def by_key(layer, optimizer=None):
    """Keys in ascending order -> [rows, counts, slots ...] of the layer in this process."""
    keys = layer.local.keys()
    order = np.argsort(keys.keys)
    slots = keys.slots[order]
    held = [layer.embeddings.numpy()[slots], keys.counts[order][:, None]]
    for v in optimizer.variables if optimizer else []:
        if tuple(v.shape) == tuple(layer.embeddings.shape):
            held.append(v.numpy()[slots])
    return keys.keys[order], held


def assert_alike(one, other, **kwargs):
    (model, layer), (other_model, other_layer) = one, other
    for a, b in zip(model.get_weights()[1:], other_model.get_weights()[1:], strict=True):
        np.testing.assert_allclose(a, b, **kwargs)
    (keys, held), (other_keys, other_held) = (
        by_key(layer, model.optimizer),
        by_key(other_layer, other_model.optimizer),
    )
    np.testing.assert_array_equal(keys, other_keys)
    for a, b in zip(held, other_held, strict=True):
        np.testing.assert_allclose(a, b, **kwargs)


def test_what_is_saved_while_it_trains_has_keys_and_rows_of_one_moment(connect, tmp_path):
    """New ids come in every epoch, and the last batch of an epoch is what its file has."""
    model, layer = compiled("sgd")
    x = np.repeat(IDS[:45].reshape(15, 3), 4, 0)
    y = np.sin(x[:, :1] % 7).astype(np.float32)
    seen, saved = [], str(tmp_path / "{epoch}.weights.h5")

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(dict(zip(*(a.tolist() for a in layer.table()), strict=True)))

    trainer = tfps.Trainer(model, connect(ps=2))
    save = keras.callbacks.ModelCheckpoint(saved, save_weights_only=True)
    trainer.fit(
        x, y, batch_size=4, shuffle=False, epochs=3, steps_per_epoch=5, verbose=0,
        callbacks=[save, Look()],
    )  # fmt: skip
    for epoch, expected in enumerate(seen, 1):
        other, other_layer = compiled("sgd")
        other.load_weights(saved.format(epoch=epoch))
        found = dict(zip(*(a.tolist() for a in other_layer.table()), strict=True))
        assert found == expected and len(found) == 15 * epoch
    final = dict(zip(*(a.tolist() for a in trainer.table(layer)), strict=True))
    assert final == seen[-1]


def marks(trainer):
    (table,) = trainer._session.served.store.tables.values()
    return table.marks()


CLOSE = {"rtol": 1e-5, "atol": 1e-6}
FIT = {"batch_size": 16, "shuffle": False, "verbose": 0}


def test_one_worker_trains_as_plain_keras(connect, tmp_path):
    served, plain = compiled(), compiled()
    trainer = tfps.Trainer(served[0], connect())
    for fit in (trainer.fit, plain[0].fit):
        fit(*data(), epochs=2, **FIT)
    assert_alike(served, plain, **CLOSE)
    before = marks(trainer)
    rows = trainer.strategy.placement().rows
    one, two = [row for row in rows if row.variable.startswith("h/")]
    assert one.bytes == two.bytes >= 100 * 8 * 4 and one.state_bytes == one.bytes
    assert sum(one["used"] for one in before) == len(np.unique(data()[0]))
    # Neither evaluation nor prediction lets anything in, also for ids that were never trained.
    unknown = data(shift=1)
    assert trainer.evaluate(*unknown, verbose=0) == pytest.approx(
        plain[0].evaluate(*unknown, verbose=0), rel=1e-5
    )
    np.testing.assert_allclose(
        trainer.predict(unknown[0], verbose=0), plain[0].predict(unknown[0], verbose=0), **CLOSE
    )
    assert marks(trainer) == before
    # What plain Keras trains goes to the servers, and comes back with new ids.
    for fit in (served[0].fit, plain[0].fit):
        fit(*data(), **FIT)
    for fit in (trainer.fit, plain[0].fit):
        fit(*unknown, **FIT)
    assert_alike(served, plain, **CLOSE)
    served[0].save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for model in (loaded, served[0]):
        model.fit(*data(), **FIT)
    assert_alike((loaded, loaded.get_layer("h")), served, **CLOSE)


def test_it_equals_a_fixed_table_bit_by_bit(connect):
    """With sparse_updates="lazy" and the same initial rows: rows, slots and the other weights."""
    strategy, results = connect(), []
    x, y = data()
    place = np.searchsorted(np.sort(IDS), x)
    grows, layer = compiled("adam")
    first = layer(np.sort(IDS)).numpy()
    ids = keras.Input([3], dtype="int64")
    fixed = keras.layers.Embedding(len(IDS), 8, name="h")
    out = keras.layers.Dense(1)(keras.layers.Flatten()(fixed(ids)))
    other = keras.Model(ids, out)
    other.compile("adam", "mse")
    other.set_weights([first, *grows.get_weights()[1:]])
    for model, given in ((other, place), (grows, x)):
        trainer = tfps.Trainer(model, strategy, sparse_updates="lazy")
        trainer.fit(given, y, epochs=2, **FIT)
        results.append(model.get_weights()[1:])
    keys, (rows, _, *slots) = by_key(layer, grows.optimizer)
    all_keys = keys_of(tf.constant(np.sort(IDS))).numpy()
    seen = np.isin(all_keys, keys)
    order = np.argsort(all_keys[seen])
    held = [v.numpy() for v in other.optimizer.variables if tuple(v.shape) == (len(IDS), 8)]
    for mine, theirs in zip([rows, *slots], [fixed.embeddings.numpy(), *held], strict=True):
        np.testing.assert_array_equal(mine, theirs[seen][order])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        (tfps.Sync, {"push": tfps.compression.BFloat16()}),
        pytest.param(tfps.Sync, {"overlap": 1}, marks=soak),
        pytest.param(
            lambda: tfps.BoundedStaleness(2),
            {"overlap": 2, "pull": tfps.compression.Int8()},
            marks=soak,
        ),
    ],
)
def test_policies(connect, policy, arguments):
    served = compiled(keras.optimizers.Adam(0.02))
    trainer = tfps.Trainer(served[0], connect(workers=2), policy(), **arguments)
    history = trainer.fit(*data(), epochs=4, **FIT).history["loss"]
    assert history[-1] < history[0]
    keys = by_key(served[1])[0]
    np.testing.assert_array_equal(keys, np.sort(np.unique(keys_of(tf.constant(data()[0])))))


def test_rounds_are_one_step_on_all_batches(connect):
    served, plain = compiled("sgd"), compiled("sgd")
    trainer = tfps.Trainer(served[0], connect(workers=2), tfps.Sync())
    x, y = data()
    trainer.fit(x, y, epochs=2, **FIT)
    plain[0].fit(x, y, epochs=2, **{**FIT, "batch_size": 32})
    assert_alike(served, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pushes", [150, pytest.param(10_000, marks=soak)])
def test_no_push_to_a_row_is_lost(connect, pushes):
    ids = keras.Input([1], dtype="int64")
    layer = tfps.layers.HashEmbedding(1, expected=10, initializer="zeros")
    model = keras.Model(ids, layer(ids))
    model.compile(keras.optimizers.SGD(1.0), lambda y, y_pred: -y_pred, steps_per_execution=10)
    x = np.full([2 * pushes, 1], 7)
    trainer = tfps.Trainer(model, connect(workers=2))
    trainer.fit(x, np.zeros([2 * pushes, 1]), batch_size=1, verbose=0)
    assert float(trainer.predict(x[:1], verbose=0).item()) == 2 * pushes
    assert by_key(layer)[1][1].item() == 2 * pushes


def test_a_push_that_overflows_lets_nothing_in(connect):
    keras.config.set_dtype_policy("mixed_float16")
    served = compiled(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), scale=1e4)
    trainer = tfps.Trainer(served[0], connect())
    x, y = data()
    trainer.fit(x[:16], y[:16] * 1e4, **FIT)
    assert [one["used"] for one in marks(trainer)] == [0, 0]


@pytest.mark.parametrize("ps", [1, pytest.param(3, marks=soak), pytest.param(5, marks=soak)])
def test_a_state_goes_to_another_number_of_servers(connect, ps):
    served = compiled()
    trainer = tfps.Trainer(served[0], connect(ps=2))
    trainer.fit(*data(), **FIT)
    state = trainer.state.export()
    trainer.fit(*data(), **FIT)
    other = compiled()
    again = tfps.Trainer(other[0], connect(ps=ps))
    again.state.restore(state)
    again.fit(*data(), epochs=2, **FIT)  # Of which one is over.
    assert_alike(other, served, rtol=1e-6, atol=1e-7)
    (table,) = again._session.served.store.tables.values()
    assert len(table.buckets) == ps


@pytest.mark.parametrize("ps", [pytest.param(2, marks=soak), 1])
def test_a_snapshot_has_all_of_a_table(connect, tmp_path, ps):
    """A killed chief goes on, on as many servers or on others, to what it would have had."""

    def trainer(folder, ps=2):
        made = compiled()
        snapshots = tfps.Snapshots(tmp_path / folder, every=None, every_updates=3)
        return made, tfps.Trainer(made[0], connect(ps=ps), snapshots=snapshots)

    whole, uncut = trainer("whole")
    uncut.fit(*data(), epochs=3, **FIT)
    _, cut = trainer("cut")
    with contextlib.suppress(Killed):
        cut.fit(*data(), epochs=3, callbacks=[KillAt(1, 4)], **FIT)
    cut._snapshotter.wait()
    after, again = trainer("cut", ps)
    again.fit(*data(), epochs=3, **FIT)
    assert_alike(after, whole, rtol=0 if ps == 2 else 1e-6, atol=0 if ps == 2 else 1e-7)
    (table,) = again._session.served.store.tables.values()
    meta = table.export([]).meta
    assert len(np.unique(meta[:, KEY])) == len(meta) == len(np.unique(data()[0]))


def test_a_full_chief_takes_the_rows_that_are_named_most(connect, monkeypatch):
    monkeypatch.setattr("tfps.embeddings.local_table.LOCAL_BYTES", 8 * 4 * 10)
    monkeypatch.setattr("tfps.store.growing._WINDOW", 7)
    model, layer = compiled()
    trainer = tfps.Trainer(model, connect())
    x, y = data()
    trainer.fit(x, y, **FIT)
    assert sum(one["used"] for one in marks(trainer)) == len(np.unique(x))
    _, (_, counts) = by_key(layer)
    (table,) = trainer._session.served.store.tables.values()
    every = np.sort(table.export([]).meta[:, 2])[::-1]
    np.testing.assert_array_equal(np.sort(counts[:, 0])[::-1], every[:10])
    # What is read in pieces is what is there.
    for bucket in table.buckets:
        meta, rows = table.read_part(bucket, [""])
        pieces = TableState.joined(list(table._windows(bucket, [""])))
        np.testing.assert_array_equal(pieces.meta, meta)
        np.testing.assert_array_equal(pieces.rows[""], rows[0])
    # They go on from what the servers have.
    before = trainer.evaluate(x, y, verbose=0)
    assert trainer.evaluate(x, y, verbose=0) == before
    assert trainer.fit(x, y, **FIT).history["loss"][0] < before * 1.01


def test_a_key_that_is_found_twice_is_what_it_was_last():
    meta = np.array([[7, 0, 1, 4], [5, 1, 2, 3], [7, 2, 3, 9]])
    found = TableState(meta, {"": np.arange(3.0)[:, None]}).unique()
    np.testing.assert_array_equal(found.meta, meta[1:])
    np.testing.assert_array_equal(found.rows[""], [[1.0], [2.0]])
    empty = TableState(meta[:0], {"": np.zeros([0, 1])})
    assert empty.unique() is empty


def test_what_does_not_go_with_growing(connect):
    x, y = data()
    model, _ = compiled(keras.optimizers.SGD(0.1, use_ema=True))
    with pytest.raises(tfps.ConfigError, match=r"a table that grows .* use_ema=False"):
        tfps.Trainer(model, connect()).fit(x, y, **FIT)
    model, _ = compiled()
    with pytest.raises(tfps.ConfigError, match=r"LocalSteps .* h/embeddings grows"):
        tfps.Trainer(model, connect(), tfps.LocalSteps(2)).fit(x, y, **FIT)
