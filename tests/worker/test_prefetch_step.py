"""Overlap: exactly the staleness that it promises, and nothing lost."""

import functools
import re
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tests.covering import covering
from tests.graphs import conditional_devices, sources
from tfps.cluster import devices
from tfps.cluster.devices import worker_device
from tfps.store.actors import Actors
from tfps.worker.overlapped_step import OverlappedStep
from tfps.worker.prefetch_step import PrefetchStep

soak = pytest.mark.soak
FED = covering("fed, overlap", ["by the chief", "by datasets of the workers"], [2, 1], strength=1)


def delayed_sgd(model, x, y, delay, rate=0.05):
    """Plain SGD whose gradients are of the parameters of `delay` updates before."""
    weights = [w.copy() for w in model.get_weights()]
    past = [weights]
    for begin in range(0, len(x), 32):
        model.set_weights(past[max(0, len(past) - 1 - delay)])
        with tf.GradientTape() as tape:
            error = model(x[begin : begin + 32]) - y[begin : begin + 32]
            loss = tf.reduce_mean(error**2)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        gradients = map(tf.convert_to_tensor, gradients)  # Those of tables too.
        new = [w - rate * g.numpy() for w, g in zip(past[-1], gradients, strict=True)]
        past.append(new)
    return past[-1]


@pytest.mark.parametrize(
    "overlap, steps",
    [
        (1, 4),
        (2, 4),
        *(pytest.param(*case, marks=soak) for case in [(0, 4), (0, 1), (1, 1), (2, 1)]),
    ],
)
def test_one_worker_misses_just_its_last_updates(connect, overlap, steps):
    x, y = regression()
    model = mlp()
    expected = delayed_sgd(mlp(), x, y, overlap)
    model.compile(keras.optimizers.SGD(0.05), "mse", steps_per_execution=steps)
    trainer = tfps.Trainer(model, connect(), overlap=overlap)
    trainer.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert trainer.stats["staleness_max"] == [overlap]
    # The first steps of an epoch have nothing to miss.
    pushes = len(x) // 32
    assert trainer.stats["staleness"] == [sum(min(i, overlap) for i in range(pushes)) / pushes]


@pytest.mark.parametrize("overlap", [1, 2])
def test_rows_of_tables_are_as_old_as_all_else(connect, overlap):
    """And all else is as old as above, in calls of one step."""

    def embedding():
        keras.utils.set_random_seed(0)
        ids = keras.Input([6], dtype="int32")
        x = keras.layers.Flatten()(keras.layers.Embedding(50, 4)(ids))
        return keras.Model(ids, keras.layers.Dense(1)(x))

    ids = np.random.default_rng(0).integers(50, size=[320, 6]).astype(np.int32)
    y = np.sin(ids.sum(1, keepdims=True)).astype(np.float32)
    expected = delayed_sgd(embedding(), ids, y, overlap, rate=1.0)
    model = embedding()
    model.compile(keras.optimizers.SGD(1.0), "mse")
    trainer = tfps.Trainer(model, connect(), overlap=overlap)
    trainer.fit(ids, y, batch_size=32, shuffle=False, verbose=0)
    assert trainer._session.served.store.plan.tables
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap, length", [(2, 3), pytest.param(1, 100, marks=soak)])
def test_datasets_go_on_where_the_last_epoch_ended(connect, overlap, length):
    """The weight is the sum of the batches used: 0, 1, 2.., from 0 again after the last."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[0.0]])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: keras.ops.mean(-p))

    def dataset_fn(context):
        numbers = tf.cast(tf.range(length), tf.float32)[:, None]
        return tf.data.Dataset.from_tensor_slices((numbers, numbers)).batch(1)

    trainer = tfps.Trainer(model, connect(), overlap=overlap)
    used = []
    for epoch in range(2):
        trainer.fit(dataset_fn, initial_epoch=epoch, epochs=epoch + 1, steps_per_epoch=5, verbose=0)
        used.append(float(model.layers[0].kernel[0, 0]))
    trainer.fit(dataset_fn, epochs=2, steps_per_epoch=5, verbose=0)
    batches = np.arange(10) % length
    assert used == [batches[:5].sum(), 2 * batches[:5].sum()]
    assert float(model.layers[0].kernel[0, 0]) == used[-1] + batches.sum()
    # Every push is counted, that of the last batch before the dataset began anew too.
    assert trainer.stats["push_bytes_per_step"] == [4.0, 4.0]


@pytest.mark.parametrize(
    "overlap, updates", [(2, 400), *(pytest.param(i, 2000, marks=soak) for i in (1, 2))]
)
def test_no_update_is_lost(connect, overlap, updates):
    """The gradient is 1, so the weight counts the updates."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[0.0]])
    model.compile(
        keras.optimizers.SGD(1.0), loss=lambda y, p: keras.ops.mean(-p), steps_per_execution=3
    )
    x = np.ones([updates, 1], np.float32)
    trainer = tfps.Trainer(model, connect(workers=2), overlap=overlap)
    trainer.fit(x, x, batch_size=2, epochs=2, verbose=0)
    assert model.layers[0].kernel.numpy() == updates
    assert trainer._session.served.store.iterations() == updates
    assert trainer.stats["staleness"][0] >= overlap * 0.9


@pytest.mark.parametrize(
    "overlap, steps",
    [(1, 1), (2, 3), *(pytest.param(*case, marks=soak) for case in [(0, 3), (1, 3), (2, 1)])],
)
def test_datasets_of_workers_that_end(connect, overlap, steps):
    """Every batch of 5 and of 3 is used once in each epoch, and what is no batch never."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    kernel = model.layers[0].kernel
    kernel.assign([[0.0]])
    # The gradient is 1 for any batch, one of zeros too.
    model.compile(
        keras.optimizers.SGD(1.0),
        loss=lambda y, p: 0.0 * keras.ops.mean(p) - keras.ops.mean(kernel),
        steps_per_execution=steps,
    )

    def dataset_fn(context):
        batches = (5, 3)[context.worker_index]
        ones = np.ones([2 * batches, 1], np.float32)
        return tf.data.Dataset.from_tensor_slices((ones, ones)).batch(2)

    trainer = tfps.Trainer(model, connect(workers=2), overlap=overlap)
    history = trainer.fit(dataset_fn, epochs=2, verbose=0)
    assert kernel.numpy() == 16.0
    assert trainer._session.served.store.iterations() == 16
    # 8 batches of 2, whose loss is minus the number of updates that the weights have seen.
    assert -8.0 <= history.history["loss"][0] <= 0.0


@functools.cache
def with_a_table(connect, overlap, fed, steps=1) -> PrefetchStep:
    """The step of a trainer of a model with an embedding and a scale of the loss.

    Args:
      connect: the fixture; a graph outlives its connection, so a step is traced once.
      overlap: of the trainer.
      fed: who makes the batches.
      steps: in a call.
    """
    ids, y = np.arange(64, dtype=np.int32)[:, None] % 7, np.ones([64, 1, 1], np.float32)
    model = keras.Sequential([keras.Input([1]), keras.layers.Embedding(7, 4)])
    model.add(keras.layers.Dense(1))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer, "mse", steps_per_execution=steps)
    trainer = tfps.Trainer(model, connect(), overlap=overlap)
    if fed == "by the chief":
        trainer.fit(ids, y, batch_size=16, verbose=0)
    else:
        trainer.fit(lambda c: tf.data.Dataset.from_tensor_slices((ids, y)).batch(16), verbose=0)
    assert trainer._session.served.store.plan.tables
    return traced(trainer)


@FED
def test_servers_need_not_be_told_of_a_condition(connect, overlap, fed):
    """They would learn of it only after all of the last update had arrived."""
    step = with_a_table(connect, overlap, fed)
    assert not any("ps" in device for device in conditional_devices(step._run))


@pytest.mark.parametrize(
    "fed, overlap",
    [("by datasets of the workers", 2), pytest.param("by the chief", 1, marks=soak)],
)
def test_a_loop_over_the_steps_of_a_call_spans_the_servers(connect, overlap, fed):
    """So what is found above is no mistake of the search."""
    step = with_a_table(connect, overlap, fed, steps=2)
    assert any("ps" in device for device in conditional_devices(step._run))


@FED
def test_computing_waits_for_no_server(connect, overlap, fed):
    """All that it takes, rows of tables and the scale of the loss too, came before."""
    step = with_a_table(connect, overlap, fed)
    conditionals = [op for op in step._run.graph.get_operations() if "If" in op.type]
    compute = max(conditionals, key=lambda op: len(op.inputs))
    assert len(compute.inputs) > len(tf.nest.flatten(step._held_specs))
    assert not any("ps" in op.device for op in sources(compute))


@FED
def test_an_update_waits_for_nothing_that_is_on_its_way(connect, overlap, fed):
    """A ps takes in a push all by itself, and the worker's own graph writes no variable."""
    step = with_a_table(connect, overlap, fed)
    for p in step._pusher.written_to():
        loop = every_op(step._pusher.loop(p)._run.graph)
        assert {op.device for op in loop if op.inputs and op.device} <= {devices.ps_device(p)}
        assert any(op.type == "ConsumeMutexLock" for op in loop)
    writes = re.compile("Assign.*Variable|ResourceScatter|ResourceStridedSliceAssign|Mutex")
    assert not [op for op in every_op(step._run.graph) if writes.match(op.type)]


def every_op(graph):
    """The operations of a graph, and of the functions that it calls."""
    found = list(graph.get_operations())
    for name in graph._functions:
        function = graph._functions[name]
        inner = getattr(function, "graph", None)
        found += inner.get_operations() if inner is not None else []
    return found


@pytest.mark.parametrize("overlap", [pytest.param(1, marks=soak), 2])
def test_nothing_is_updated_in_a_call_whose_input_fails(connect, overlap):
    def check(number):
        if number == 3:
            time.sleep(0.5)  # An update that did not wait would be done.
            raise ValueError("the fourth batch")
        return np.float32(number)

    def dataset_fn(context):
        numbers = tf.data.Dataset.range(6).map(
            lambda n: tf.reshape(tf.numpy_function(check, [n], tf.float32), [1, 1])
        )
        return numbers.map(lambda x: (x, x))

    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    trainer = tfps.Trainer(model, connect(), overlap=overlap)
    with pytest.raises(tfps.WorkerError, match="the fourth batch"):
        trainer.fit(dataset_fn, verbose=0)
    assert trainer._session.served.store.iterations() == 3 - overlap


@covering("fed, overlap", ["by the chief", "by datasets of the workers"], [2, 1], strength=1)
def test_what_stands_in_for_a_batch_can_be_looked_up(connect, overlap, fed):
    """Zeros could not: ids begin with 1 here, and the number of examples is known."""
    dataset = tf.data.Dataset.from_tensor_slices((np.arange(1, 9)[:, None], np.ones([8, 1, 4])))
    dataset = dataset.batch(2, drop_remainder=True)
    model = keras.Sequential([keras.Input([1]), keras.layers.Lambda(lambda ids: ids - 1)])
    model.add(keras.layers.Embedding(8, 4))
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect(), overlap=overlap)
    x = dataset if fed == "by the chief" else lambda context: dataset
    history = trainer.fit(x, epochs=2, verbose=0).history
    assert trainer._session.served.store.plan.tables
    assert history["loss"][1] < history["loss"][0]


def traced(trainer) -> PrefetchStep | OverlappedStep:
    """The step of a trainer that has trained."""
    kinds = PrefetchStep, OverlappedStep
    (step,) = (s for s in trainer._session.steps._traced.values() if isinstance(s, kinds))
    return step


@covering("overlap, steps", [1, 2], [2, 1], strength=1)
def test_what_a_worker_carries_is_on_the_worker(connect, overlap, steps):
    """Also at first, or its first step would be another graph than the rest."""
    x, y = regression(64)
    model = mlp()
    model.compile("adam", "mse", steps_per_execution=steps)
    trainer = tfps.Trainer(model, connect(), overlap=overlap)

    class Look(keras.callbacks.Callback):
        reads_weights = False

        def on_train_batch_end(self, batch, logs=None):
            (self.carry,) = trainer.state.carries

    look = Look()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    trainer.fit(lambda context: data, callbacks=[look], verbose=0)
    step, carry = traced(trainer), look.carry
    with tf.device(worker_device(0)):
        actors = Actors(step._pusher)
        first = step.start(actors.handles(0, 0), None)
    for one in first, carry:
        tensors = tf.nest.flatten(one)
        assert tensors and all("job:worker" in t.backing_device for t in tensors)
    # Between epochs, only what codecs have not sent yet.
    assert not trainer.state.carries
    (rest,) = trainer.state.export().workers["gradients"]
    assert not tf.nest.flatten(rest._replace(residuals={}))


@pytest.mark.parametrize("overlap", [pytest.param(1, marks=soak), 2])
def test_ragged_batches(connect, overlap):
    """Of these nothing can stand in for a batch that does not exist."""
    ids = tf.ragged.constant([[1, 2], [3], [4, 5, 6], [7]] * 4, dtype=tf.int64)

    def dataset_fn(context):
        return tf.data.Dataset.from_tensor_slices((ids, tf.ones([16, 1]))).batch(4)

    class Mean(keras.Model):
        """The gradient is 1 for any batch."""

        def build(self, shape):
            self.w = self.add_weight(shape=(), initializer="zeros")

        def call(self, ragged):
            mean = tf.reduce_mean(tf.cast(ragged, tf.float32), axis=1, keepdims=True)
            return self.w + 0.0 * mean

    model = Mean()
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: p, jit_compile=False)
    tfps.Trainer(model, connect(workers=2), overlap=overlap).fit(dataset_fn, verbose=0)
    assert model.w.numpy() == -8.0


@pytest.mark.parametrize("overlap", [pytest.param(0, marks=soak), 2])
def test_dynamic_loss_scale_and_state(connect, overlap):
    """What is no push must change neither the scale nor the statistics."""
    x, y = regression()
    model = mlp(batch_norm=True)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=64.0, dynamic_growth_steps=10
    )
    model.compile(optimizer, "mse")
    trainer = tfps.Trainer(model, connect(), overlap=overlap)
    trainer.fit(x, y, batch_size=32, epochs=2, verbose=0)  # 20 updates
    scale, good = (v.numpy() for v in trainer._session.served.store.loss_scale.variables)
    assert (scale, good) == (256.0, 0)
    mean = model.layers[1].moving_mean.numpy()
    assert np.isfinite(mean).all()
    assert np.abs(mean).max() > 0


def test_bad_overlap(connect):
    with pytest.raises(tfps.ConfigError, match="overlap=3 must be 0, 1 or 2"):
        tfps.Trainer(mlp(), connect(), overlap=3)


def test_bad_consistency(connect):
    with pytest.raises(tfps.ConfigError, match="consistency='sync' is no policy"):
        tfps.Trainer(mlp(), connect(), consistency="sync")
    trainer = tfps.Trainer(mlp(), connect())
    with pytest.raises(tfps.ConfigError, match="consistency=None is no policy"):
        trainer.consistency = None
