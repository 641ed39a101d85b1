"""Embeddings: only rows travel, duplicates are summed, and updates go by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfps
from tests.covering import covering
from tfps.model.row_ids import row_ids
from tfps.model.stateless_model import StatelessModel
from tfps.store.tables import Ids

ROWS = 60
soak = pytest.mark.soak


class Tied(keras.layers.Layer):
    """Looks rows up and multiplies with the whole table: no case for rows alone."""

    def build(self, _):
        self.table = self.add_weight(shape=(ROWS, 4), name="table")

    def call(self, ids):
        return ops.matmul(ops.take(self.table, ids, axis=0), ops.transpose(self.table))


def model(layer=keras.layers.Embedding, *args, **kwargs):
    keras.utils.set_random_seed(5)
    ids = keras.Input([6], dtype="int32")
    args = args or ((ROWS, 4) if layer is keras.layers.Embedding else ())
    x = layer(*args, **kwargs)(ids)
    return keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(x)))


def data(rows=ROWS):
    # Few distinct ids a batch, with many repetitions.
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20, (160, 6)) + rng.integers(0, 3, (160, 1)) * 20
    return ids.astype(np.int32), np.sin(ids.sum(1, keepdims=True)).astype(np.float32)


def dense_reference(optimizer):
    """Plain Keras with a dense gradient: its own sparse one does not sum repeated ids
    before it squares them (Keras 3.15), so Adam would differ."""
    reference = model(embeddings_regularizer=keras.regularizers.L2(0.0))
    reference.compile(optimizer, "mse")
    return reference


@covering("partitioner, steps", [tfps.partitioners.FixedShards(2), None], [1, 4], strength=1)
def test_exact_updates_equal_plain_keras(connect, partitioner, steps):
    strategy = connect(partitioner=partitioner)
    net = model()
    net.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), "mse", steps_per_execution=steps)
    reference = dense_reference(keras.optimizers.AdamW(0.01, weight_decay=0.1))
    x, y = data()
    trainer = tfps.Trainer(net, strategy)
    for fit in (trainer.fit, reference.fit):
        fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    assert len(trainer._session.served.store.plan.tables) == 1
    for a, b in zip(net.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [pytest.param(0, marks=soak), 1])
def test_lazy_updates_leave_other_rows_bit_identical(connect, overlap):
    strategy = connect(partitioner=tfps.partitioners.FixedShards(2))
    net = model()
    net.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), "mse")
    before = net.get_weights()[0]
    x, y = data()
    x = x % 20  # Rows from 20 on are never looked up.
    tfps.Trainer(net, strategy, sparse_updates="lazy", overlap=overlap).fit(
        x, y, batch_size=16, epochs=2, verbose=0
    )
    after = net.get_weights()[0]
    np.testing.assert_array_equal(after[20:], before[20:])
    assert (np.abs(after[:20] - before[:20]).max(axis=1) > 0).all()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: keras.optimizers.SGD(0.1), marks=soak),
        pytest.param(lambda: keras.optimizers.Adagrad(0.1), marks=soak),
        pytest.param(lambda: keras.optimizers.RMSprop(0.01), marks=soak),
        lambda: keras.optimizers.Nadam(0.01),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    ],
)
def test_lazy_equals_exact_where_every_row_is_looked_up(connect, make):
    x = np.tile(np.arange(ROWS, dtype=np.int32).reshape(10, 6), [3, 1])
    y = np.sin(x.sum(1, keepdims=True)).astype(np.float32)
    results = []
    for kind in ("lazy", "exact"):
        net = model()
        net.compile(make(), "mse")
        tfps.Trainer(net, connect(), sparse_updates=kind).fit(
            x, y, batch_size=30, epochs=4, shuffle=False, verbose=0
        )
        results.append(net.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_what_is_used_as_a_whole_is_no_table(connect):
    net = model(Tied)
    net.compile(keras.optimizers.SGD(0.1), "mse")
    reference = model(Tied)
    reference.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = data()
    trainer = tfps.Trainer(net, connect())
    for fit in (trainer.fit, reference.fit):
        fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert not trainer._session.served.store.plan.tables
    for a, b in zip(net.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_same_table_looked_up_twice(connect):
    class Twice(keras.layers.Layer):
        def build(self, _):
            self.table = self.add_weight(shape=(ROWS, 4), name="table")

        def call(self, ids):
            return ops.take(self.table, ids, axis=0) * ops.take(self.table, ROWS - 1 - ids, axis=0)

    results = []
    x, y = data()
    for use in ("tfps", "keras"):
        net = model(Twice)
        net.compile(keras.optimizers.SGD(0.5), "mse")
        trainer = tfps.Trainer(net, connect(partitioner=tfps.partitioners.FixedShards(2)))
        fit = trainer.fit if use == "tfps" else net.fit
        fit(x, y, batch_size=16, shuffle=False, verbose=0)
        if use == "tfps":
            assert len(trainer._session.served.store.plan.tables) == 1
        results.append(net.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [pytest.param(0, marks=soak), 2])
def test_constant_ids(connect, overlap):
    """Positions are looked up with ids that do not depend on the batch."""
    keras.utils.set_random_seed(0)
    ids = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(ROWS, 4)(ids)
    x = x + keras.layers.Embedding(6, 4)(ops.cumsum(ops.ones_like(ids), axis=1) - 1)
    net = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
    net.compile(keras.optimizers.Adam(0.02), "mse")
    x, y = data()
    trainer = tfps.Trainer(net, connect(), overlap=overlap)
    losses = trainer.fit(x, y, batch_size=16, epochs=4, verbose=0).history["loss"]
    assert len(trainer._session.served.store.plan.tables) == 2
    assert losses[-1] < losses[0]


def test_only_rows_are_counted(connect):
    net = model(keras.layers.Embedding, 100_000, 4)
    net.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = data()
    trainer = tfps.Trainer(net, connect(), sparse_updates="lazy")
    trainer.fit(x, y, batch_size=160, verbose=0)
    unique = len(np.unique(x))
    dense = 25 * 4
    assert trainer.stats["pull_bytes_per_step"] == [dense + unique * 16]
    assert trainer.stats["push_bytes_per_step"] == [dense + unique * (16 + 2 * 8)]


def test_a_row_that_does_not_exist_is_the_workers_error(connect):
    net = model()
    net.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = data()
    x[3, 2] = ROWS
    with pytest.raises(tfps.WorkerError, match=rf"{ROWS}.* not in \[0, {ROWS}\)"):
        tfps.Trainer(net, connect()).fit(x, y, verbose=0)


def test_lazy_is_refused_where_it_has_no_meaning(connect):
    x, y = data()
    net = model()
    net.compile(keras.optimizers.Adafactor(), "mse")
    with pytest.raises(tfps.ConfigError, match="Adafactor needs whole"):
        tfps.Trainer(net, connect(), sparse_updates="lazy").fit(x, y, verbose=0)
    net.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    with pytest.raises(tfps.ConfigError, match="use_ema=True averages all rows"):
        tfps.Trainer(net, connect(), sparse_updates="lazy").fit(x, y, verbose=0)
    net.compile("sgd", "mse")
    local = tfps.Trainer(net, connect(), tfps.LocalSteps(2), sparse_updates="lazy")
    with pytest.raises(tfps.ConfigError, match="LocalSteps updates whole tables"):
        local.fit(x, y, verbose=0)
    with pytest.raises(tfps.ConfigError, match='must be "exact" or "lazy"'):
        tfps.Trainer(net, connect(), sparse_updates="eager")


def test_ids_are_unique_in_the_order_of_use():
    ids = Ids.of([tf.constant([[3, 1], [3, 7]]), tf.constant([7, 9])])
    np.testing.assert_array_equal(ids.unique, [3, 1, 7, 9])
    np.testing.assert_array_equal(ids.positions[0], [[0, 1], [0, 2]])
    np.testing.assert_array_equal(ids.positions[1], [2, 3])
    assert int(ids.total) == 6


def test_ids_are_found_without_the_forward_pass():
    """Also with a loss that checks its input, which TensorFlow would not leave out."""
    ids = keras.Input([6], dtype="int32")
    x = keras.layers.Dense(4)(keras.layers.Embedding(ROWS, 4)(ids))
    net = keras.Model(ids, x)
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    program = StatelessModel(net)

    @tf.function(autograph=False)
    def ids_of(step, *batch):
        return row_ids(program, [0], step, batch, mode="train")

    tokens = tf.TensorSpec([None, 6], tf.int32)
    graph = ids_of.get_concrete_function(tf.TensorSpec([], tf.int64), tokens, tokens).graph
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    assert not {n.op for n in nodes} & {"MatMul", "BatchMatMulV2", "Assert"}
    (found,) = ids_of(
        tf.constant(0, tf.int64), tf.ones([2, 6], tf.int32), tf.ones([2, 6], tf.int32)
    )[0]
    np.testing.assert_array_equal(found, np.ones([2, 6]))
