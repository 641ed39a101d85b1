"""Tables that grow whose rows are replaced as a whole: files, `set_weights`, other servers."""

import copy
import pickle
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.store.test_growing import CLOSE, FIT, assert_alike, by_key, compiled, data
from tfps.cluster.devices import ps_device
from tfps.embeddings.handles import KEY


def server_keys(trainer):
    (table,) = trainer._session.served.store.tables.values()
    return np.sort(table.export([]).meta[:, KEY])


def test_a_file_with_the_state_of_the_optimizer(connect, tmp_path):
    """Whoever loads it goes on as the model that it is of, which met the ids in another order."""
    served, plain, saved = compiled(), compiled(), compiled()
    trainer = tfps.Trainer(served[0], connect())
    x, y = data()
    saved[0].fit(x[::-1], y[::-1], **FIT)
    saved[0].save_weights(tmp_path / "m.weights.h5")
    saved[0].fit(x, y, **FIT)
    for (model, _), fit in ((served, trainer.fit), (plain, plain[0].fit)):
        fit(*data(shift=1), **FIT)
        fit(x, y, **FIT)
        model.load_weights(tmp_path / "m.weights.h5")
        fit(x, y, **FIT)
        assert_alike((model, model.get_layer("h")), saved, **CLOSE)
    np.testing.assert_array_equal(server_keys(trainer), by_key(saved[1])[0])


class Worse(keras.callbacks.Callback):
    """Tells `EarlyStopping` that the first epoch was the best."""

    def on_epoch_end(self, epoch, logs=None):
        logs["loss"] = float(epoch)


def best_is_restored(model, layer, fit, shift):
    """Trains on other ids in each epoch; returns what the first had, and what is there."""
    x, y = (np.concatenate([a, b]) for a, b in zip(data(), data(shift=shift), strict=True))
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((model.get_weights()[1:], by_key(layer)))

    stop = keras.callbacks.EarlyStopping("loss", patience=1, restore_best_weights=True)
    calls = [Worse(), Look(), stop]
    fit(x, y, epochs=3, steps_per_epoch=6, callbacks=calls, **FIT)
    assert len(seen) == 2
    return seen[0], seen[1], (model.get_weights()[1:], by_key(layer))


@pytest.mark.parametrize("settings", [{}, {"capacity": 40, "expected": 40}], ids=str)
@pytest.mark.parametrize("on_servers", [False, True])
def test_the_best_weights_are_restored_with_their_ids(connect, on_servers, settings):
    """Ids that came after the best epoch are gone, and those that were evicted are back."""
    model, layer = compiled("adam", **settings)
    fit = model.fit
    if on_servers:
        trainer = tfps.Trainer(model, connect(ps=1))
        fit = trainer.fit
    (dense, (keys, held)), (_, (later, _)), (now, (found, rows)) = best_is_restored(
        model, layer, fit, shift=1
    )
    np.testing.assert_array_equal(found, keys)
    assert len(np.setdiff1d(later, keys)) > 10
    for a, b in zip([*dense, *held], [*now, *rows], strict=True):
        np.testing.assert_array_equal(a, b)
    if on_servers:
        trainer.evaluate(*data(), verbose=0)
        np.testing.assert_array_equal(server_keys(trainer), keys)


def test_slots_stay_with_their_keys_when_weights_are_set(connect):
    model, layer = compiled("adam")
    trainer = tfps.Trainer(model, connect())
    trainer.fit(*data(), **FIT)
    best = [w.copy() for w in model.get_weights()]
    trainer.fit(*data(shift=1), **FIT)
    keys, (_, _, *slots) = by_key(layer, model.optimizer)
    model.set_weights(best)
    trainer.evaluate(*data(), verbose=0)
    trainer._session.served.store.fetch()
    left, (rows, _, *after) = by_key(layer, model.optimizer)
    assert 0 < len(left) < len(keys)
    for a, b in zip(after, slots, strict=True):
        np.testing.assert_array_equal(a, b[np.isin(keys, left)])
    other, other_layer = compiled("adam")
    other.set_weights(best)
    assert by_key(other_layer)[0].tolist() == left.tolist()
    np.testing.assert_array_equal(by_key(other_layer)[1][0], rows)


def test_rows_of_which_it_is_not_known_whose_they_are_are_refused():
    model, layer = compiled("sgd")
    model.fit(*data(), **FIT)
    one = layer.embeddings.numpy()
    kept = [pickle.loads(pickle.dumps(one)), copy.deepcopy(one), (one + one) / 2, one.copy()]
    plain = np.array(one)
    layer.embeddings.assign(plain * 2)
    assert by_key(layer)[1][0].any()
    model.fit(*data(shift=1), **FIT)
    two = layer.embeddings.numpy()
    model.fit(*data(shift=2), **FIT)
    for lost in (plain, (one + two) / 2, two[::-1]):
        with pytest.raises(tfps.ConfigError, match="do not tell whose they are"):
            layer.embeddings.assign(lost)
    for again in kept:
        layer.embeddings.assign(again)
        np.testing.assert_array_equal(layer.embeddings.numpy()[:10], plain[:10])
        assert len(by_key(layer)[0]) == len(np.unique(data()[0]))


def test_a_part_of_the_servers_rows_is_no_weight_to_set(connect, monkeypatch):
    monkeypatch.setattr("tfps.embeddings.local_table.LOCAL_BYTES", 8 * 4 * 10)
    model, _ = compiled("sgd")
    trainer = tfps.Trainer(model, connect())
    stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    with pytest.warns(UserWarning, match="room for 10 rows of h/embeddings"):
        trainer.fit(*data(), callbacks=[stop], **{**FIT, "epochs": 0})
    trainer.fit(*data(), **FIT)
    weights, keys = model.get_weights(), server_keys(trainer)
    with pytest.raises(tfps.ConfigError, match=r"get 10 rows .* the servers had \d+ more"):
        model.set_weights(weights)
    trainer.evaluate(*data(), verbose=0)
    np.testing.assert_array_equal(server_keys(trainer), keys)


@pytest.mark.parametrize("on_servers", [False, True])
def test_a_file_without_the_state_leaves_each_key_its_slots(connect, tmp_path, on_servers):
    """The file's layer has met the ids in another order, and has fewer rows."""
    (model, _), (other, _) = compiled("sgd"), compiled("sgd", expected=30)
    x, y = data()
    other.fit(x[-8:], y[-8:], **FIT)
    path = tmp_path / "m.weights.h5"
    keras.Model(other.inputs, other.outputs).save_weights(path)
    model, layer = compiled("adam")
    trainer = tfps.Trainer(model, connect())
    fit = trainer.fit if on_servers else model.fit
    fit(x, y, **FIT)
    keys, (_, _, *slots) = by_key(layer, model.optimizer)
    model.load_weights(path)
    if on_servers:
        trainer.evaluate(x, y, verbose=0)
        trainer._session.served.store.fetch()
    left, (rows, _, *after) = by_key(layer, model.optimizer)
    theirs, (their_rows, _) = by_key(other.get_layer("h"))
    np.testing.assert_array_equal(left, theirs)
    np.testing.assert_allclose(rows, their_rows, rtol=1e-6)
    assert 0 < len(left) < len(keys)
    for a, b in zip(after, slots, strict=True):
        np.testing.assert_array_equal(a, b[np.isin(keys, left)])


def test_rows_that_only_servers_have_stay_when_the_variables_are_made_anew(
    connect, monkeypatch, capfd
):
    monkeypatch.setattr("tfps.embeddings.local_table.LOCAL_BYTES", 8 * 4 * 10)
    model, layer = compiled("sgd")
    trainer = tfps.Trainer(model, connect())
    trainer.fit(*data(), **FIT)

    def rows():
        keys, rows = trainer.table(layer)
        return keys[np.argsort(keys)], rows[np.argsort(keys)]

    before = rows()
    for work in (lambda: trainer.evaluate(*data(), verbose=0), lambda: trainer.fit(*data(), **FIT)):
        model.compile(keras.optimizers.SGD(0.0, momentum=0.9), "mse")
        work()
        assert len(before[0]) == len(np.unique(data()[0])) > 10
        for a, b in zip(rows(), before, strict=True):
            np.testing.assert_array_equal(a, b)
    assert "are on the servers of before alone" not in capfd.readouterr().err
    tfps.Trainer(model, connect()).evaluate(*data(), verbose=0)
    missing = len(before[0]) - 10
    assert f"{missing} rows of h/embeddings are on the servers of" in capfd.readouterr().err


def test_every_table_on_servers_sees_that_keys_were_replaced(connect, tmp_path):
    model, layer = compiled("sgd")
    trainers = [tfps.Trainer(model, connect()) for _ in range(2)]
    x, y = data()
    trainers[0].fit(x[:16], y[:16], **FIT)
    few, _ = by_key(layer)
    model.save_weights(tmp_path / "m.weights.h5")
    for trainer in trainers:
        trainer.fit(x, y, **FIT)
    model.load_weights(tmp_path / "m.weights.h5")
    for trainer in trainers:
        trainer.evaluate(x, y, verbose=0)
        np.testing.assert_array_equal(server_keys(trainer), few)
    # What was restored since is not taken for what was loaded before.
    state = trainers[0].state.export()
    trainers[0].fit(x, y, **FIT)
    model.load_weights(tmp_path / "m.weights.h5")
    trainers[0].state.restore(state)
    trainers[0].fit(x, y, epochs=2, **FIT)
    layer.embeddings.assign(layer.embeddings + 1)
    before = server_keys(trainers[0])
    trainers[0].evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(server_keys(trainers[0]), before)


def test_keys_are_taken_out_while_nobody_pushes(connect):
    model, layer = compiled("sgd")
    trainer = tfps.Trainer(model, connect())
    trainer.fit(*data(), **FIT)
    store = trainer._session.served.store
    (table,) = store.tables.values()
    few = by_key(layer)[0][:5]
    for work, kept in ((lambda: table._keep_only(few), few), (table.clear, few[:0])):
        with tf.device(ps_device(0)):
            push = tf.raw_ops.MutexLock(mutex=store._locks[0])
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        del push
        thread.join(30)
        assert not thread.is_alive()
        np.testing.assert_array_equal(server_keys(trainer), kept)
