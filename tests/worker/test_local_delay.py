"""`LocalSteps` with a delay: exchanges that go on while workers train."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting, mlp, regression, relative_error
from tests.graphs import conditional_devices, sources

o = keras.optimizers
STEPS, BATCH, EXCHANGES = 3, 8, 5
soak = pytest.mark.soak
SHORT = pytest.mark.parametrize("delay", [1, pytest.param(STEPS, marks=soak)])
LONG = pytest.mark.parametrize("delay", [STEPS, pytest.param(1, marks=soak)])


class Counted(keras.Model):
    """A dense network that sees how many batches there were."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(batch_norm=True)
        self.batches = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, x, training=False):
        if training:
            self.batches.assign_add(1)
        seen = keras.ops.cast(self.batches, "float32")
        return self.inner(x, training=training) * (1 + 0.1 * seen)


@pytest.mark.parametrize(
    "steps, delay, merge, fed",
    [
        (3, 1, "round", "worker"),
        (3, 3, "each", "chief"),
        pytest.param(1, 1, "each", "worker", marks=soak),
        pytest.param(1, 1, "round", "chief", marks=soak),
        pytest.param(3, 1, "each", "chief", marks=soak),
        pytest.param(3, 3, "each", "worker", marks=soak),
        pytest.param(3, 3, "round", "chief", marks=soak),
    ],
)
def test_a_worker_sees_its_own_steps_at_once(connect, steps, delay, merge, fed):
    """A worker that is alone trains as plain Keras does; the last exchange is short."""
    x, y = regression(20 * BATCH)

    def data(context=None):
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True)

    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        model = Counted()
        model.compile(o.Adam(0.02), "mse", jit_compile=False)
        models.append(model)
    model, reference = models
    strategy = connect(1)
    policy = tfps.LocalSteps(steps, o.SGD(1.0), merge, delay)
    trainer = tfps.Trainer(model, strategy, policy)
    trainer.fit(data if fed == "worker" else data(), epochs=2, verbose=0)
    reference.fit(data(), epochs=2, shuffle=False, verbose=0)
    assert int(model.batches) == 40
    assert relative_error(model, reference) < 1e-4
    assert trainer.stats["staleness_max"] == [0.0, 0.0]


def sgd(weights, data, begin, end, model):
    """What plain Keras with SGD makes of weights with these batches."""
    if begin == end:
        return weights
    x, y = (a[begin * BATCH : end * BATCH] for a in data)
    model.set_weights(weights)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return model.get_weights()


def minus(one, other):
    return [a - b for a, b in zip(one, other, strict=True)]


def fitted(strategy, policy, data):
    """(the model, the stats) of a small network trained with SGD on a piece for each worker."""

    def dataset(context):
        size = EXCHANGES * STEPS * BATCH
        mine = slice(context.worker_index * size, (context.worker_index + 1) * size)
        return tf.data.Dataset.from_tensor_slices(tuple(a[mine] for a in data)).batch(BATCH)

    model = mlp()
    model.compile(o.SGD(0.05), "mse", jit_compile=False)
    trainer = tfps.Trainer(model, strategy, policy)
    trainer.fit(dataset, verbose=0)
    return model, trainer.stats


@SHORT
def test_each_is_moved_by_its_own_first_steps(connect, delay):
    """By hand: an outer rate of 0.5 shows any step that is left out or counted twice."""
    data = regression(320)
    by_hand = mlp()
    by_hand.compile(o.SGD(0.05), "mse", jit_compile=False)
    served = own = by_hand.get_weights()
    for exchange in range(EXCHANGES):
        begin = exchange * STEPS
        early = sgd(own, data, begin, begin + delay, by_hand)
        copy = minus(served, minus(own, early))
        own = sgd(copy, data, begin + delay, begin + STEPS, by_hand)
        told = minus(served, own)
        served = [w - 0.5 * d for w, d in zip(served, told, strict=True)]
    by_hand.set_weights(served)
    policy = tfps.LocalSteps(STEPS, o.SGD(0.5), "each", delay)
    model, _ = fitted(connect(1), policy, data)
    assert relative_error(model, by_hand) < 1e-5


@LONG
def test_in_rounds_others_come_so_many_steps_later(connect, delay):
    data = regression(320)
    pieces = [[a[w * 120 :] for a in data] for w in range(2)]
    by_hand = mlp()
    by_hand.compile(o.SGD(0.05), "mse", jit_compile=False)
    served = by_hand.get_weights()
    own = [served] * 2
    for exchange in range(EXCHANGES):
        begin, told = exchange * STEPS, []
        for w in range(2):
            early = sgd(own[w], pieces[w], begin, begin + delay, by_hand)
            copy = minus(served, minus(own[w], early))
            own[w] = sgd(copy, pieces[w], begin + delay, begin + STEPS, by_hand)
            told.append(minus(served, own[w]))
        mean = [(a + b) / 2 for a, b in zip(*told, strict=True)]
        served = [w - 0.7 * d for w, d in zip(served, mean, strict=True)]
    by_hand.set_weights(served)
    policy = tfps.LocalSteps(STEPS, o.SGD(0.7), "round", delay)
    model, stats = fitted(connect(2), policy, data)
    assert relative_error(model, by_hand) < 1e-5
    assert stats["staleness_max"] == [0.0]


@LONG
def test_no_update_is_lost(connect, delay):
    """80 and 20 batches, which end in the middle of an exchange; two epochs and two policies."""
    model = Counting.compiled(o.SGD(1.0))

    def data(context):
        ones = np.ones([(80, 20)[context.worker_index], 1], np.float32)
        return tf.data.Dataset.from_tensor_slices((ones, ones)).batch(1)

    outer = o.SGD(1.0)
    trainer = tfps.Trainer(model, connect(2), tfps.LocalSteps(8, outer, "each", delay))
    trainer.fit(data, verbose=0)
    first = trainer.stats
    np.testing.assert_allclose(model.w, np.full(4, -100.0), rtol=1e-6)
    trainer.consistency = tfps.LocalSteps(3, outer, "each", delay)
    trainer.fit(data, verbose=0)
    second = trainer.stats
    np.testing.assert_allclose(model.w, np.full(4, -200.0), rtol=1e-6)
    assert int(model.batches) == 200
    assert int(model.optimizer.iterations) == 10 + 3 + 27 + 7
    # 20 bytes each.
    sent = [100 * h["push_bytes_per_step"][0] for h in (first, second)]
    np.testing.assert_allclose(sent, [13 * 20, 34 * 20])


@pytest.mark.parametrize(
    "merge, fed", [("round", "worker"), pytest.param("each", "chief", marks=soak)]
)
def test_the_first_steps_wait_for_no_server(connect, merge, fed):
    """And no condition spans the servers."""
    x, y = regression(64)
    policy = tfps.LocalSteps(3, o.SGD(1.0), merge, delay=1)
    model = mlp()
    model.compile(o.SGD(0.05), "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect(1), policy)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True)
    trainer.fit(data if fed == "chief" else lambda context: data, verbose=0)
    (step,) = (s for s in trainer._session.steps._traced.values() if hasattr(s, "_local"))
    assert not any("ps" in device for device in conditional_devices(step._run))
    loops = [op for op in step._run.graph.get_operations() if "While" in op.type]
    waits = [any("ps" in op.device for op in sources(loop)) for loop in loops]
    assert sorted(waits) == [False, True]


@pytest.mark.parametrize("delay", [-1, 4, 1.5])
def test_bad_delay(delay):
    with pytest.raises(tfps.ConfigError, match="delay") as caught:
        tfps.LocalSteps(3, delay=delay)
    assert "\n" not in str(caught.value)
