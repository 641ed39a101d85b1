"""`LocalSteps` with overlap: exchanges that go on while workers train."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting, mlp, regression, relative_error
from tests.graphs import conditional_devices, sources

o = keras.optimizers
OVERLAPS = pytest.mark.parametrize("overlap", [1, 2])
STEPS, BATCH = 3, 8


def fitted(strategy, policy, overlap, optimizer, data, **trainer_args):
    """(the model, the logs) of a small network trained on datasets of the workers."""
    model = mlp()
    model.compile(optimizer, "mse", jit_compile=False)
    trainer = tfps.Trainer(model, strategy, policy, overlap=overlap, **trainer_args)
    return model, trainer.fit(data, verbose=0).history


@OVERLAPS
@pytest.mark.parametrize(
    "optimizer", [lambda: o.SGD(0.05, momentum=0.9), lambda: o.Adam(0.02)], ids=["sgd", "adam"]
)
def test_a_worker_sees_its_own_steps_at_once(connect, overlap, optimizer):
    """One that is alone trains as plain Keras does; 40 batches, the last exchange is short."""
    x, y = regression(320)
    reference = mlp()
    reference.compile(optimizer(), "mse", jit_compile=False)
    reference.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)

    def data(context):
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)

    policy = tfps.LocalSteps(STEPS, o.SGD(1.0), merge="each")
    model, logs = fitted(connect(1), policy, overlap, optimizer(), data)
    assert relative_error(model, reference) < 1e-5
    assert logs["staleness_max"] == [0.0]


def sgd(weights, x, y, model):
    """What plain Keras with SGD makes of weights in an exchange."""
    model.set_weights(weights)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return model.get_weights()


def minus(one, other):
    return [a - b for a, b in zip(one, other, strict=True)]


def piece(arrays, exchange, worker=0, exchanges=5):
    begin = (worker * exchanges + exchange) * STEPS * BATCH
    return [a[begin : begin + STEPS * BATCH] for a in arrays]


@OVERLAPS
def test_updates_on_their_way_are_part_of_the_copy(connect, overlap):
    """By hand: an outer rate of 0.5 would show any difference that is left out or counted twice."""
    data = x, y = [a[: 5 * STEPS * BATCH] for a in regression(320)]
    keras_model = mlp()
    keras_model.compile(o.SGD(0.05), "mse", jit_compile=False)
    served = [keras_model.get_weights()]  # after 0, 1, .. updates
    copy, told = served[0], []
    for exchange in range(5):
        # Pulled at the beginning, when this many updates were made.
        pulled = served[max(0, exchange + 1 - overlap)]
        after = sgd(copy, *piece(data, exchange), keras_model)
        told.append(minus(copy, after))
        served.append([w - 0.5 * d for w, d in zip(served[-1], told[-1], strict=True)])
        copy = pulled
        for difference in told[-overlap:]:
            copy = minus(copy, difference)
    keras_model.set_weights(served[-1])

    def dataset(context):
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)

    policy = tfps.LocalSteps(STEPS, o.SGD(0.5), merge="each")
    model, _ = fitted(connect(1), policy, overlap, o.SGD(0.05), dataset)
    assert relative_error(model, keras_model) < 1e-5


@OVERLAPS
def test_in_rounds_others_come_one_round_later(connect, overlap):
    data = regression(320)
    keras_model = mlp()
    keras_model.compile(o.SGD(0.05), "mse", jit_compile=False)
    served = [keras_model.get_weights()]
    copies = [served[0]] * 2
    for exchange in range(5):
        afters = [
            sgd(copy, *piece(data, exchange, w), keras_model) for w, copy in enumerate(copies)
        ]
        told = [minus(copy, after) for copy, after in zip(copies, afters, strict=True)]
        mean = [(a + b) / 2 for a, b in zip(*told, strict=True)]
        copies = [minus(served[-1], difference) for difference in told]
        served.append([w - 0.7 * d for w, d in zip(served[-1], mean, strict=True)])
    keras_model.set_weights(served[-1])

    def dataset(context):
        mine = slice(context.worker_index * 120, context.worker_index * 120 + 120)
        return tf.data.Dataset.from_tensor_slices(tuple(a[mine] for a in data)).batch(BATCH)

    policy = tfps.LocalSteps(STEPS, o.SGD(0.7), merge="round")
    model, logs = fitted(connect(2), policy, overlap, o.SGD(0.05), dataset)
    assert relative_error(model, keras_model) < 1e-5
    assert logs["staleness_max"] == [1.0]


@OVERLAPS
@pytest.mark.parametrize("push", [None, tfps.compression.OneBit()], ids=["exact", "onebit"])
def test_no_update_is_lost(connect, overlap, push):
    """80 and 20 batches, which end in the middle of an exchange; two epochs and two policies."""
    model = Counting.compiled(o.SGD(1.0))

    def data(context):
        ones = np.ones([(80, 20)[context.worker_index], 1], np.float32)
        return tf.data.Dataset.from_tensor_slices((ones, ones)).batch(1)

    outer = o.SGD(1.0)
    trainer = tfps.Trainer(
        model, connect(2), tfps.LocalSteps(8, outer, merge="each"), overlap=overlap, push=push
    )
    trainer.fit(data, verbose=0)
    np.testing.assert_allclose(model.w, np.full(4, -100.0), rtol=1e-6)
    trainer.consistency = tfps.LocalSteps(3, outer, merge="each")
    trainer.fit(data, verbose=0)
    np.testing.assert_allclose(model.w, np.full(4, -200.0), rtol=1e-6)
    assert int(model.batches) == 200
    assert int(model.optimizer.iterations) == 10 + 3 + 27 + 7


@pytest.mark.parametrize("merge", ["each", "round"])
@OVERLAPS
def test_moving_averages_stay_in_their_range(connect, overlap, merge):
    x, y = regression(320)
    x = 5 + 3 * x
    model = mlp(batch_norm=True)
    model.compile(o.SGD(0.01), "mse", jit_compile=False)
    policy = tfps.LocalSteps(4, o.SGD(1.0), merge=merge)
    trainer = tfps.Trainer(model, connect(2), policy, overlap=overlap)
    losses = trainer.fit(x, y, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    norm = model.layers[1]
    assert (norm.moving_variance.numpy() > 0).all()
    seen = model.layers[0](x).numpy()
    np.testing.assert_allclose(norm.moving_mean, seen.mean(0), atol=0.3)


@pytest.mark.parametrize("merge", ["each", "round"])
@OVERLAPS
def test_training_waits_for_no_server(connect, overlap, merge):
    """And no condition spans the servers."""
    x, y = regression(64)
    policy = tfps.LocalSteps(2, o.SGD(1.0), merge=merge)
    model = mlp()
    model.compile(o.SGD(0.05), "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect(1), policy, overlap=overlap)
    trainer.fit(lambda context: tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH), verbose=0)
    (step,) = (s for s in trainer._session._steps.values() if hasattr(s, "_local"))
    assert not any("ps" in device for device in conditional_devices(step._run))
    (loop,) = (op for op in step._run.graph.get_operations() if "While" in op.type)
    assert not any("ps" in op.device for op in sources(loop))


def test_nothing_is_updated_in_a_call_whose_input_fails(connect):
    """With 2, an update is on its way from the first moment of a call."""

    def check(number):
        if number == 5:
            time.sleep(0.5)  # An update that did not wait would be done.
            raise ValueError("the sixth batch")
        return np.float32(number)

    def data(context):
        numbers = tf.data.Dataset.range(8).map(
            lambda n: tf.reshape(tf.numpy_function(check, [n], tf.float32), [1, 1])
        )
        return numbers.map(lambda x: (x, x))

    model = Counting.compiled(o.SGD(1.0))
    policy = tfps.LocalSteps(2, o.SGD(1.0), merge="each")
    trainer = tfps.Trainer(model, connect(1), policy, overlap=2)
    with pytest.raises(tfps.WorkerError, match="the sixth batch"):
        trainer.fit(data, verbose=0)
    # Of two whole exchanges, the second was on its way.
    np.testing.assert_array_equal(trainer._session.store.stored[0].numpy().ravel()[:4], -2.0)
