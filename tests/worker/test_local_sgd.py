"""`LocalSteps`: workers that train on copies and exchange what they learned."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting, mlp, regression, relative_error

o = keras.optimizers


soak = pytest.mark.soak


def trained(strategy, policy, optimizer, **fit_args):
    """(the model, the logs with the stats) of a small regression."""
    x, y = regression(320)
    model = mlp()
    model.compile(optimizer, "mse", jit_compile=False)
    args = {"batch_size": 8, "shuffle": False, "verbose": 0, **fit_args}
    history = tfps.Trainer(model, strategy, policy, log_stats=True).fit(x, y, **args).history
    return model, history


def test_one_step_of_sgd_is_a_synchronous_one(connect):
    strategy = connect(2)
    local, _ = trained(strategy, tfps.LocalSteps(1, o.SGD(1.0)), o.SGD(0.05))
    sync, logs = trained(strategy, tfps.Sync(), o.SGD(0.05))
    assert relative_error(local, sync) < 1e-5
    for name in BYTES:
        assert logs[name] == [4 * sync.count_params()]


STEPS, EXCHANGES, BATCH = 3, 4, 8
BYTES = ("push_bytes_per_step", "pull_bytes_per_step")


def own_data(worker):
    """Each worker's own batches, of its own sizes."""
    x, y = regression(320)
    mine = slice(worker * 160, worker * 160 + STEPS * EXCHANGES * (BATCH, 4)[worker])
    return x[mine], y[mine], (BATCH, 4)[worker]


def dataset_fn(context):
    x, y, batch = own_data(context.worker_index)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


def mean(decay):
    """A rule of exchange: what becomes of the servers' weights and the workers' mean."""
    return lambda weights, means: [
        decay * w + (1 - decay) * m for w, m in zip(weights, means, strict=True)
    ]


def diloco():
    """Nesterov's momentum, by hand."""
    velocity = []

    def exchange(weights, means):
        velocity[:] = velocity or [0.0] * len(weights)
        gradients = [w - m for w, m in zip(weights, means, strict=True)]
        velocity[:] = [0.9 * v - 0.7 * g for v, g in zip(velocity, gradients, strict=True)]
        return [w + 0.9 * v - 0.7 * g for w, v, g in zip(weights, velocity, gradients, strict=True)]

    return exchange


def by_hand(optimizer, exchanged):
    """Two plain Keras models, each with an optimizer of its own, merged now and then."""
    models = [mlp(), mlp()]
    for model in models:
        model.compile(optimizer(), "mse", jit_compile=False)
    weights = models[0].get_weights()
    shares = np.array([BATCH, 4]) / (BATCH + 4)
    for exchange in range(EXCHANGES):
        results = []
        for worker, model in enumerate(models):
            x, y, batch = own_data(worker)
            mine = slice(exchange * STEPS * batch, (exchange + 1) * STEPS * batch)
            model.set_weights(weights)
            model.fit(x[mine], y[mine], batch_size=batch, shuffle=False, verbose=0)
            results.append(model.get_weights())
        means = [shares[0] * a + shares[1] * b for a, b in zip(*results, strict=True)]
        weights = exchanged(weights, means)
    models[0].set_weights(weights)
    return models[0]


OPTIMIZERS = {
    "adam": lambda: o.Adam(o.schedules.ExponentialDecay(0.02, 4, 0.7)),
    "sgd": lambda: o.SGD(0.05),
}
OUTER = {
    "average": ("average", lambda: mean(0.0)),
    "decay": (tfps.ModelAverage(0.25), lambda: mean(0.25)),
    "diloco": ("diloco", diloco),
}
QUICK = ("diloco", "adam"), ("decay", "sgd")


# An average is a decay of 0.
@pytest.mark.parametrize(
    "outer, optimizer",
    [
        pytest.param(*case, marks=[] if case in QUICK else soak)
        for case in itertools.product(OUTER, OPTIMIZERS)
    ],
)
def test_equals_keras_models_merged_by_hand(connect, optimizer, outer):
    optimizer, (outer, exchanged) = OPTIMIZERS[optimizer], OUTER[outer]
    model = mlp()
    model.compile(optimizer(), "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect(2), tfps.LocalSteps(STEPS, outer))
    trainer.fit(dataset_fn, verbose=0)
    assert relative_error(model, by_hand(optimizer, exchanged())) < 1e-5
    for name in BYTES:
        assert trainer.stats[name] == [4 * model.count_params() / STEPS]


def test_the_workers_optimizers_go_on_from_epoch_to_epoch(connect):
    """Also the count of updates of the servers does."""
    strategy = connect(2)
    models = []
    for epochs in (1, 2):
        model = mlp()
        model.compile(o.Adam(0.02), "mse", jit_compile=False)
        batches = STEPS * EXCHANGES * 2
        half = {"steps_per_epoch": batches // epochs, "epochs": epochs}
        trainer = tfps.Trainer(model, strategy, tfps.LocalSteps(STEPS, "average"))
        trainer.fit(lambda c: dataset_fn(c).repeat(), verbose=0, **half)
        assert int(model.optimizer.iterations) == EXCHANGES
        models.append(model)
    assert relative_error(*models) < 1e-5


@pytest.mark.parametrize(
    "outer, each",
    [(o.SGD(1.0), 1.0), pytest.param("average", 0.5, marks=soak)],
    ids=["sgd", "average"],
)
def test_merging_each_loses_no_update(connect, outer, each):
    """80 and 20 batches, which end in the middle of an exchange."""
    model = Counting.compiled(o.SGD(1.0))

    def data(context):
        ones = np.ones([(80, 20)[context.worker_index], 1], np.float32)
        return tf.data.Dataset.from_tensor_slices((ones, ones)).batch(1)

    policy = tfps.LocalSteps(8, outer, merge="each")
    tfps.Trainer(model, connect(2), policy).fit(data, verbose=0)
    np.testing.assert_array_equal(model.w, np.full(4, -100 * each))
    assert int(model.batches) == 100
    assert int(model.optimizer.iterations) == 13


def test_rounds_of_uneven_ends_lose_no_step(connect):
    """A round of 3 steps and 1 is worth (3 * 3 + 1 * 1) / 4; one worker goes on alone."""
    model = Counting.compiled(o.SGD(1.0))

    def data(context):
        ones = np.ones([(11, 7)[context.worker_index], 1], np.float32)
        return tf.data.Dataset.from_tensor_slices((ones, ones)).batch(1)

    tfps.Trainer(model, connect(2), tfps.LocalSteps(3, o.SGD(1.0))).fit(data, verbose=0)
    np.testing.assert_allclose(model.w, np.full(4, -(3 + 3 + 2.5 + 2)), rtol=1e-6)
    assert int(model.batches) == 18


@pytest.mark.soak
@pytest.mark.parametrize("merge", ["each", "round"])
def test_diloco_trains(connect, merge):
    model, history = trained(connect(2), tfps.LocalSteps(4, merge=merge), o.SGD(0.01), epochs=4)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    for name in BYTES:
        assert history[name] == [model.count_params()] * 4  # 4 bytes in 4 steps.


def test_tables_travel_whole(connect):
    model = keras.Sequential([keras.Input([3], dtype="int32"), keras.layers.Embedding(50, 4)])
    model.compile(o.SGD(0.1), "mse")
    before = model.get_weights()[0]
    x = np.random.default_rng(0).integers(0, 20, (64, 3))
    y = np.ones([64, 3, 4], np.float32)
    policy = tfps.LocalSteps(2, "average")
    trainer = tfps.Trainer(model, connect(2), policy)
    trainer.fit(x, y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0][20:], before[20:])
    assert (model.get_weights()[0][:20] != before[:20]).any(axis=1).all()
    for name in BYTES:
        assert trainer.stats[name] == [50 * 4 * 4 / 2]


@pytest.mark.parametrize(
    "optimizer, reason",
    [
        (lambda: o.LossScaleOptimizer(o.SGD(0.1)), "LossScaleOptimizer"),
        (lambda: o.SGD(0.1, use_ema=True), "use_ema"),
    ],
)
def test_optimizers_that_need_all_steps_are_refused(connect, optimizer, reason):
    with pytest.raises(tfps.ConfigError, match=reason) as caught:
        trained(connect(2), tfps.LocalSteps(2), optimizer())
    assert "\n" not in str(caught.value)


def test_policies_with_one_outer_optimizer_share_its_momentum(connect):
    """The number of steps may change while training."""
    outer = o.SGD(1.0, momentum=0.5)
    model = Counting.compiled(o.SGD(1.0))
    trainer = tfps.Trainer(model, connect(1), tfps.LocalSteps(2, outer))
    x = np.ones([4, 1], np.float32)
    trainer.fit(x, x, batch_size=1, verbose=0)
    np.testing.assert_allclose(model.w, -5.0)  # 2, then 2 + 0.5 * 2.
    trainer.consistency = tfps.LocalSteps(4, outer)
    trainer.fit(x, x, batch_size=1, verbose=0)
    np.testing.assert_allclose(model.w, -10.5)  # 4 + 0.5 * 3 more.
    assert len(trainer.state.export().sides) == 1
    assert tfps.LocalSteps(2).outer is tfps.LocalSteps(4).outer


def test_batches_without_sample_weights_may_say_so(connect):
    """Keras takes None for them from a generator; a call has several batches in one stack."""
    x, y = regression(64)
    weights = []
    for missing in ((), (None,)):
        batches = ((x[i : i + 8], y[i : i + 8], *missing) for i in range(0, 64, 8))
        model = mlp()
        model.compile(o.SGD(0.05), "mse")
        tfps.Trainer(model, connect(1), tfps.LocalSteps(4)).fit(batches, verbose=0)
        weights.append(model)
    assert relative_error(*weights) == 0


def test_what_cannot_train_on_copies_is_refused_at_once(connect):
    model = mlp()
    model.compile(o.SGD(0.05, use_ema=True), "mse")
    with pytest.raises(tfps.ConfigError, match="use_ema"):
        tfps.Trainer(model, connect(), tfps.LocalSteps(4))
    trainer = tfps.Trainer(model, connect())
    model.compile(o.LossScaleOptimizer(o.SGD(0.05)), "mse")
    with pytest.raises(tfps.ConfigError, match="LossScaleOptimizer"):
        trainer.consistency = tfps.LocalSteps(4)
    assert trainer.consistency == tfps.Async()
