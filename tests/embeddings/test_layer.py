"""The layer in plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps.embeddings.keys import keys_of
from tfps.layers import HashEmbedding


def test_it_trains_as_a_dense_embedding_with_the_same_rows():
    big = np.random.default_rng(0).integers(-(1 << 62), 1 << 62, 20)
    x = np.random.default_rng(1).integers(0, 20, (64, 5))
    hashed, dense = HashEmbedding(4, expected=50), keras.layers.Embedding(20, 4)
    first = hashed(big).numpy()
    results = []
    for layer, ids in ((hashed, big[x]), (dense, x)):
        keras.utils.set_random_seed(3)
        i = keras.Input([5], dtype="int64")
        head = keras.layers.Dense(1, kernel_initializer="ones")
        model = keras.Model(i, head(keras.layers.Flatten()(layer(i))))
        if layer is dense:
            dense.embeddings.assign(first)
        model.compile(keras.optimizers.SGD(0.05), "mse")
        model.fit(ids, np.sin(x[:, 0]), batch_size=16, epochs=3, shuffle=False, verbose=0)
        results.append(model.predict(ids, verbose=0))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_a_model_of_classes_that_is_built_by_fit():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.rows = HashEmbedding(1, expected=40, initializer="zeros")

        def call(self, x, training=None):
            return self.rows(keras.ops.cast(x[:, 0], "int64"), training=training)

    x = np.arange(40, dtype=np.float32)[:, None]
    model = Model()
    model.compile(keras.optimizers.SGD(2.0), lambda y, p: -p)
    model.fit(x, x, batch_size=2, epochs=3, verbose=0)
    np.testing.assert_array_equal(model(x), np.full([40, 1], 3.0))


def test_looking_up_changes_nothing_and_config_makes_the_same_rows():
    layer = HashEmbedding(4, expected=10, initializer="random_normal", evict="lru")
    rows = layer(np.array([[1, 2], [1, 3]]))
    np.testing.assert_array_equal(rows[0, 0], rows[1, 0])
    assert not len(layer.local.keys().keys)
    again = HashEmbedding.from_config(layer.get_config())
    np.testing.assert_array_equal(again(np.array([[1, 2], [1, 3]])), rows)
    other = HashEmbedding(4, expected=10, initializer="random_normal")  # Of another name.
    assert not np.allclose(other(np.array([1])), rows[0, 0])
    assert layer.compute_output_shape((None, 2)) == (None, 2, 4)


@pytest.mark.parametrize("kind", [HashEmbedding, tfps.layers.Embedding])
def test_bags(kind):
    layer = kind(4, expected=10) if kind is HashEmbedding else kind(10, 4)
    rows = layer(np.arange(6)).numpy()

    def bag(combiner, ids, weights=None, **kwargs):
        config = {**layer.get_config(), "combiner": combiner, **kwargs}
        made = kind.from_config(config)
        made.build(None)
        made.embeddings.assign(layer.embeddings)
        return made(ids, weights=weights).numpy()

    ragged = tf.ragged.constant([[1, 2, 3], [], [5, 5]], dtype=tf.int64)
    sums = [rows[[1, 2, 3]].sum(0), np.zeros(4), 2 * rows[5]]
    np.testing.assert_allclose(bag("sum", ragged), sums, atol=1e-6)
    np.testing.assert_allclose(bag("mean", ragged), [sums[0] / 3, sums[1], rows[5]], atol=1e-6)
    weights = tf.ragged.constant([[1.0, 2.0, 0.5], [], [1.0, -3.0]])
    total = rows[1] + 2 * rows[2] + 0.5 * rows[3]
    found = bag("sqrtn", ragged, weights)
    np.testing.assert_allclose(found[0], total / np.sqrt(1 + 4 + 0.25), atol=1e-6)
    padded = np.array([[1, 2, 0], [0, 0, 0]])
    masked = bag("mean", padded, mask_zero=True)
    np.testing.assert_allclose(masked, [rows[[1, 2]].mean(0), np.zeros(4)], atol=1e-6)
    with pytest.raises(tfps.ConfigError, match="combiner='max' must be"):
        kind(4, 10, combiner="max")
    with pytest.raises(tfps.ConfigError, match='set combiner="sum"'):
        layer(ragged)


def test_masks_as_embedding():
    ids = keras.Input([3], dtype="int64")
    x = HashEmbedding(4, expected=10, mask_zero=True)(ids)
    model = keras.Model(ids, keras.layers.GlobalAveragePooling1D()(x))
    one, padded = model.predict(np.array([[7, 7, 7], [7, 0, 0]]), verbose=0)
    np.testing.assert_allclose(one, padded, atol=1e-6)


def test_strings():
    layer = HashEmbedding(4, expected=10)
    rows = layer(tf.constant(["a", "b", "a"]), training=True).numpy()
    np.testing.assert_array_equal(rows[0], rows[2])
    assert not np.allclose(rows[0], rows[1]) and len(layer.local.keys().keys) == 2


def test_ids_are_never_floats():
    """Of these, float32 makes one."""
    layer, near = HashEmbedding(4, expected=10), np.array([[1 << 24, (1 << 24) + 1]])
    for ids in (near.astype(np.float32), near > 0):
        with pytest.raises(tfps.ConfigError, match=f"ids are {ids.dtype}, but must be"):
            layer(ids)
    with pytest.raises(tfps.ConfigError, match=r"begin the model with keras\.Input"):
        layer(keras.Input([3]))
    with pytest.raises(tfps.ConfigError, match=r"begin the model with keras\.Input"):
        keras.Sequential([layer]).predict(near, verbose=0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    ids = keras.Input([2], dtype="int64")
    for kind in (HashEmbedding(4, 10), HashEmbedding(4, 10, combiner="sum")):
        model = keras.Sequential([ids, kind])
        assert model(near).dtype == model.outputs[0].dtype == "bfloat16"
    rows = keras.Sequential([ids, layer]).predict(near, verbose=0)
    assert not np.allclose(rows[0, 0], rows[0, 1])


def test_two_lookups_of_a_step_are_one_update():
    """The second takes no row from an id of the first, and counts and sightings are of steps."""
    layer = HashEmbedding(2, expected=4, capacity=4, initializer="zeros")
    patient = HashEmbedding(2, expected=40, admit_after=2)
    one, two = keras.Input([4], dtype="int64"), keras.Input([4], dtype="int64")
    out = [one_layer(i) for one_layer in (layer, patient) for i in (one, two)]
    model = keras.Model([one, two], keras.layers.Add()(out))
    model.compile(keras.optimizers.SGD(1.0), lambda y, p: -p)
    ids = [np.array([[1, 2, 3, 3]]), np.array([[3, 5, 6, 7]])]
    model.fit(ids, np.zeros([1, 4, 2]), verbose=0)
    keys = layer.local.keys()
    assert layer.local.clock == 1 and len(keys.keys) == 4
    assert set(keys.keys) > set(keys_of(tf.constant([1, 2, 3], tf.int64)).numpy())
    assert keys.counts.tolist() == [1] * 4
    assert not len(patient.local.keys().keys)
    model.fit(ids, np.zeros([1, 4, 2]), verbose=0)
    assert len(patient.local.keys().keys) == 6 and layer.local.clock == 2


def test_a_frozen_layer_lets_nothing_in(connect):
    layer = HashEmbedding(2, expected=40, capacity=4)
    layer.trainable = False
    ids = keras.Input([1], dtype="int64")
    model = keras.Model(ids, keras.layers.Dense(1)(layer(ids)))
    model.compile("sgd", "mse")
    x = np.arange(8)[:, None]
    model.fit(x, x, verbose=0)
    assert not len(layer.local.keys().keys)
    with pytest.raises(tfps.ConfigError, match=r"trainable=False; set layer\.trainable=True"):
        tfps.Trainer(model, connect(workers=1)).fit(x, x, verbose=0)


def test_strings_have_no_mask():
    words = keras.Input([3], dtype="string")
    with pytest.raises(tfps.ConfigError, match="mask_zero=True, but its ids are strings"):
        HashEmbedding(4, expected=10, mask_zero=True)(words)


def test_a_fixed_table_of_bags_trains_by_rows(connect):
    """As the same sums in plain Keras, lazily: other rows stay as they are."""
    x = np.random.default_rng(0).integers(0, 20, (64, 5))
    y = np.sin(x[:, :1]).astype(np.float32)
    models = []
    for layer in (tfps.layers.Embedding(40, 4, combiner="sum"), keras.layers.Embedding(40, 4)):
        keras.utils.set_random_seed(3)
        ids = keras.Input([5], dtype="int64")
        rows = layer(ids)
        rows = rows if len(rows.shape) == 2 else keras.ops.sum(rows, 1)
        model = keras.Model(ids, keras.layers.Dense(1)(rows))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        models.append(model)
    served, plain = models
    plain.set_weights(served.get_weights())
    trainer = tfps.Trainer(served, connect(workers=1), sparse_updates="lazy")
    for fit in (trainer.fit, plain.fit):
        fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(served.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert trainer._session.served.store.row_optimizers
