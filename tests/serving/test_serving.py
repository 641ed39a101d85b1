"""Models that are served: a SavedModel and its deltas, loaded where only TensorFlow is."""

import json
import pathlib
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.store.test_growing import FIT, compiled, data

CLOSE = {"rtol": 1e-5, "atol": 1e-6}

# Loads an export where neither tfps nor Keras can be imported, and writes what it answers.
ALONE = """
import json, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("keras", "tfps"):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
import tensorflow as tf
path, deltas, x = json.loads(sys.argv[1])
served = tf.saved_model.load(path)
x = tf.constant(x, tf.int64)
answers = [served(x).numpy().tolist()]
for delta in deltas:
    served.apply(delta)
    answers.append(served(x).numpy().tolist())
served.rollback()
answers.append(served.signatures["serving_default"](x)["output_0"].numpy().tolist())
assert not {"keras", "tfps"} & set(sys.modules)
print(json.dumps(answers))
"""


def states(path):
    """The weights, keys and rows of a served model."""
    state = (tf.saved_model.load(str(path)) if isinstance(path, pathlib.Path) else path).state
    return [v.numpy() for v in (*state.weights, *state.keys, *state.rows)]


@pytest.mark.processes
def test_what_servers_have_is_served_alone_and_follows(connect, tmp_path):
    x, y = data()
    unknown = x + 1
    model, _ = compiled(capacity=40, evict="lru", expire_after=14)
    trainer = tfps.Trainer(model, connect())
    both = np.concatenate([x[:4], unknown[:4]])
    trainer.fit(x[:48], y[:48], **FIT)
    base, deltas = tmp_path / "base", []
    expected = [trainer.predict(both, verbose=0)]
    tfps.serving.export(trainer, base)
    removed = 0
    for k, (a, b) in enumerate([(x[48:], y[48:]), (unknown, y), (unknown, y)]):
        trainer.fit(a, b, **FIT)
        deltas.append(str(tmp_path / f"delta-{k}"))
        found = tfps.serving.delta(trainer, deltas[-1], since=[base, *deltas[:-1]])
        removed += found["removed"]
        expected.append(trainer.predict(both, verbose=0))
        assert found["weights"] > 0 and found["rows"] > 0
    assert removed > 20
    expected.append(expected[-2])
    given = json.dumps([str(base), deltas, both.tolist()])
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, given], capture_output=True, text=True, timeout=120
    )
    assert alone.returncode == 0, alone.stderr
    np.testing.assert_allclose(json.loads(alone.stdout.splitlines()[-1]), expected, **CLOSE)
    # Base and deltas are what a full export is, bit by bit.
    tfps.serving.export(trainer, tmp_path / "full")
    served = tf.saved_model.load(str(base))
    for path in deltas:
        served.apply(path)
    for a, b in zip(states(served), states(tmp_path / "full"), strict=True):
        np.testing.assert_array_equal(a, b)
    nothing = tfps.serving.delta(trainer, tmp_path / "none", since=[base, *deltas])
    assert not any(nothing.values())


class Chosen(keras.layers.Layer):
    """Counts, and looks a number up in a table of TensorFlow."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        init = tf.lookup.KeyValueTensorInitializer([1, 2], [10.0, 20.0], tf.int64, tf.float32)
        self.numbers = tf.lookup.StaticHashTable(init, -1.0)

    def call(self, ids):
        return self.numbers.lookup(ids)


def several_inputs():
    """Two inputs by name, strings, a lookup table, batch statistics, dropout and a bag."""
    words, ids = (
        keras.Input([2], dtype="string", name="words"),
        keras.Input([], dtype="int64", name="ids"),
    )
    known = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    rows = tfps.layers.HashEmbedding(4, expected=9, combiner="mean", name="bag")(words)
    x = keras.layers.Concatenate()(
        [rows, keras.layers.Flatten()(keras.layers.Embedding(5, 3)(known))]
    )
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    return keras.Model({"words": words, "ids": ids}, {"y": x, "z": Chosen()(ids)})


def test_any_keras_model(tmp_path):
    model = several_inputs()
    layer = model.get_layer("bag")
    given = {
        "words": tf.constant([["a", "c"], ["d", "d"]]),
        "ids": tf.constant([2, 5], tf.int64),
    }
    layer(given["words"], training=True)
    layer.embeddings.assign_add(tf.ones_like(layer.embeddings))
    tfps.serving.export(model, tmp_path / "m")
    served = tf.saved_model.load(str(tmp_path / "m"))
    expected = model(given, training=False)
    for found in (served(given), served.signatures["serving_default"](**given)):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, **CLOSE)


def test_requests_are_answered_from_one_state(tmp_path):
    """While deltas go in and out: all of an answer's rows, of two tables, and weights agree."""
    ids = keras.Input([4], dtype="int64")
    layers = [tfps.layers.HashEmbedding(2, 50, initializer="zeros", name=n) for n in "ab"]
    model = keras.Model(ids, [layer(ids) for layer in layers])
    model.offset = model.add_weight(shape=(), initializer="zeros", name="offset")

    def become(value):
        for layer in layers:
            layer(tf.range(10 + value)[None], training=True)
            layer.embeddings.assign(tf.fill(layer.embeddings.shape, float(value)))

    become(1)
    tfps.serving.export(model, tmp_path / "m")
    become(2)
    tfps.serving.delta(model, tmp_path / "d", since=[tmp_path / "m"])
    served = tf.saved_model.load(str(tmp_path / "m"))
    x, wrong, seen, ends = tf.range(4, dtype=tf.int64)[None], [], set(), threading.Event()

    def ask():
        while not ends.is_set():
            values = {float(v) for one in served(x) for v in one.numpy().ravel()}
            seen.update(values)
            if len(values) != 1:
                wrong.append(values)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            assert served.apply(str(tmp_path / "d")) == 1
            assert served.rollback() == 0
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert not wrong and seen == {1.0, 2.0}


def test_errors_name_the_remedy(tmp_path):
    model, layer = compiled()
    tfps.serving.export(model, tmp_path / "m")
    tfps.serving.export(model, tmp_path / "other")
    layer(tf.constant([[1, 2, 3]], tf.int64), training=True)
    since = [tmp_path / "m"]
    tfps.serving.delta(model, tmp_path / "d1", since)
    tfps.serving.delta(model, tmp_path / "d2", [*since, tmp_path / "d1"])
    served, other = (tf.saved_model.load(str(tmp_path / name)) for name in ("m", "other"))
    invalid = tf.errors.InvalidArgumentError
    with pytest.raises(invalid, match="no state before this one"):
        served.rollback()
    with pytest.raises(invalid, match="a delta goes in after the one before"):
        served.apply(str(tmp_path / "d2"))
    with pytest.raises(invalid, match="of another export"):
        other.apply(str(tmp_path / "d1"))
    with pytest.raises(tf.errors.NotFoundError):
        served.apply(str(tmp_path / "d3"))
    assert served.apply(str(tmp_path / "d1")) == 1 and served.apply(str(tmp_path / "d2")) == 2
    error = tfps.ConfigError
    with pytest.raises(error, match="in their order"):
        tfps.serving.delta(model, tmp_path / "d", [*since, tmp_path / "d2"])
    with pytest.raises(error, match="export it anew"):
        tfps.serving.delta(several_inputs(), tmp_path / "d", since)
    with pytest.raises(error, match="not there or damaged"):
        tfps.serving.delta(model, tmp_path / "d", [tmp_path / "nothing"])
    with pytest.raises(error, match=r"neither a keras\.Model nor"):
        tfps.serving.export(layer, tmp_path / "x")
    with pytest.raises(error, match="is not built"):
        tfps.serving.export(keras.Sequential([keras.layers.Dense(1)]), tmp_path / "x")
