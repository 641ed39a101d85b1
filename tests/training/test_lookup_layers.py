"""Layers with vocabularies in the model: the table that they look in is the chief's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps.cluster import table_copies

soak = pytest.mark.soak
WORDS = ["good film", "bad film", "so so", "great"]


def columns(examples=192):
    """A user's name, an item's number and a text, by input; and what is to be learned of them."""
    rng = np.random.default_rng(0)
    x = {
        "user": rng.choice([f"u{i}" for i in range(20)], examples),
        "item": rng.integers(0, 12, examples) * 3,
        "text": rng.choice(WORDS, examples),
    }
    return x, rng.random((examples, 1)).astype(np.float32)


def batches():
    return tf.data.Dataset.from_tensor_slices(columns()).batch(16)


def recommender():
    """Lookups, hashing and embeddings; two names and one number are not in the vocabularies."""
    keras.utils.set_random_seed(1)
    x, _ = columns()
    user = keras.Input([], dtype="string", name="user")
    item = keras.Input([], dtype="int64", name="item")
    text = keras.Input([], dtype="string", name="text")
    names = keras.layers.StringLookup(vocabulary=[f"u{k}" for k in range(18)])
    numbers = keras.layers.IntegerLookup(vocabulary=list(range(0, 33, 3)))
    words = keras.layers.TextVectorization(output_sequence_length=3)
    words.adapt(x["text"])
    parts = [
        keras.layers.Embedding(names.vocabulary_size(), 4)(names(user)),
        keras.layers.Embedding(numbers.vocabulary_size(), 4)(numbers(item)),
        keras.layers.Embedding(8, 4)(keras.layers.Hashing(8)(user)),
        keras.layers.Flatten()(keras.layers.Embedding(words.vocabulary_size(), 4)(words(text))),
    ]
    output = keras.layers.Dense(1)(keras.layers.Concatenate()(parts))
    model = keras.Model({"user": user, "item": item, "text": text}, output)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.mark.parametrize("made", ["before", "in the scope", pytest.param("after", marks=soak)])
def test_one_worker_trains_as_keras(connect, made):
    connect(workers=2)
    reference = recommender()
    reference.fit(batches(), epochs=2, shuffle=False, verbose=0)
    model = recommender() if made == "before" else None
    strategy = connect(workers=1)
    if made == "in the scope":
        with strategy.scope():
            model = recommender()
    model = model or recommender()
    trainer = tfps.Trainer(model, strategy)
    trainer.fit(batches(), epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert trainer.evaluate(batches(), verbose=0) == pytest.approx(
        reference.evaluate(batches(), verbose=0), rel=1e-5
    )
    x, _ = columns()
    tensors = {name: tf.constant(column) for name, column in x.items()}
    np.testing.assert_allclose(
        trainer.predict(tensors, verbose=0), reference.predict(tensors, verbose=0), rtol=1e-4
    )


@pytest.mark.parametrize(
    "consistency", [tfps.Async(), pytest.param(tfps.Sync(), marks=soak), tfps.LocalSteps(2)]
)
def test_two_workers(connect, consistency):
    strategy = connect(workers=2)
    with strategy.scope():
        model = recommender()
    trainer = tfps.Trainer(model, strategy, consistency=consistency)
    losses = trainer.fit(batches(), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert trainer.evaluate(batches(), verbose=0) == pytest.approx(
        model.evaluate(batches(), verbose=0), rel=1e-4
    )


@pytest.mark.parametrize("scoped", [False, pytest.param(True, marks=soak)])
def test_each_worker_looks_in_a_copy(connect, scoped, monkeypatch):
    made = []
    copy = table_copies._copy

    def noted(table, cpu):
        made.append(copy(table, cpu))
        return made[-1]

    monkeypatch.setattr(table_copies, "_copy", noted)
    strategy = connect(workers=2)
    if scoped:
        with strategy.scope():
            model = recommender()
    else:
        model = recommender()
    tfps.Trainer(model, strategy, consistency=tfps.Sync()).fit(batches(), verbose=0)
    jobs = [tf.DeviceSpec.from_string(handle.device) for handle in made]
    assert {(d.job, d.task) for d in jobs} == {("worker", 0), ("worker", 1)}


def test_a_table_that_changes_is_shared(connect):
    """It stays on the chief: what the chief puts in is what workers find."""
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, 0.0)

    class Looked(keras.layers.Layer):
        def call(self, x):
            return tf.reshape(table.lookup(x), [-1, 1])

    x = keras.Input([1], dtype="string")
    model = keras.Model(x, keras.layers.Dense(1, kernel_initializer="ones")(Looked()(x)))
    model.compile("sgd", "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect(workers=2))
    words = tf.constant([["a"], ["b"]])
    assert trainer.predict(words, verbose=0).tolist() == [[0.0], [0.0]]
    table.insert(["b"], [5.0])
    assert trainer.predict(words, verbose=0).tolist() == [[0.0], [5.0]]


@pytest.mark.parametrize("made", ["outside", "in the scope"])
def test_datasets_of_workers_use_the_layers(connect, made):
    strategy = connect(workers=2)

    def layer():
        return keras.layers.StringLookup(vocabulary=["a", "b"])

    if made == "in the scope":
        with strategy.scope():
            lookup = layer()
    else:
        lookup = layer()

    def dataset_fn(context):
        data = tf.data.Dataset.from_tensors((["a", "b", "?"], tf.ones([3, 1])))
        return data.map(lambda x, y: (lookup(x), y))

    model = keras.Sequential(
        [keras.Input([], dtype="int64"), keras.layers.Embedding(3, 2), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, strategy)
    history = trainer.fit(dataset_fn, steps_per_epoch=4, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
