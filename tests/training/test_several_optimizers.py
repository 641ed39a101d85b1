"""Several optimizers in one model, each for its own variables, beside plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tests.training.test_optimizer_state import assert_equal_states, states
from tfps.model.inspection import Inspection
from tfps.model.optimizer_set import OptimizerSet
from tfps.model.stateless_model import StatelessModel
from tfps.store.parameter_store import ParameterStore
from tfps.store.plan import Plan

o = keras.optimizers
c = keras.callbacks
ORDER = {"batch_size": 16, "shuffle": False, "verbose": 0}


def by_map():
    """Adam with a schedule for kernels; clipped SGD with averages for biases."""
    chosen = o.OptimizerMap(o.Adam(o.schedules.ExponentialDecay(0.05, 3, 0.7)))
    chosen[".*bias"] = o.SGD(0.1, momentum=0.9, global_clipnorm=0.05, use_ema=True)
    return o.MultiOptimizer(chosen)


def by_function():
    """An optimizer for each variable, with a loss scale of all."""
    kinds = iter([lambda: o.SGD(0.1), lambda: o.Adam(0.01), lambda: o.RMSprop(0.01)] * 9)
    return o.MultiOptimizer(lambda variable: next(kinds)(), loss_scale_factor=8.0)


def shared():
    """Two optimizers, one of them for several variables, which only the function knows."""
    kernels, biases = o.SGD(0.1, momentum=0.9), o.Adam(0.01)
    return o.MultiOptimizer(lambda variable: kernels if "kernel" in variable.path else biases)


def scaled():
    return o.LossScaleOptimizer(by_map(), initial_scale=64.0, dynamic_growth_steps=4)


def whole():
    """One that needs whole variables, and one that does not."""
    chosen = o.OptimizerMap(o.SGD(0.05))
    chosen[".*kernel"] = o.Adafactor(0.05)
    return o.MultiOptimizer(chosen)


def compiled(make, **settings):
    model = mlp()
    model.compile(make(), "mse", **{"jit_compile": False, **settings})
    return model


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, marks=pytest.mark.soak) for make in (by_map, by_function)),
        shared,
        scaled,
        pytest.param(whole, marks=pytest.mark.soak),
    ],
)
def test_several_optimizers_equal_keras(connect, make):
    x, y = regression(80)
    model, reference = compiled(make), compiled(make)
    trainer = tfps.Trainer(model, connect())
    for fit in (trainer.fit, reference.fit):
        fit(x, y, epochs=2, **ORDER)
    assert_equal_states(model, reference)


def test_partitioned_and_compiled_and_several_steps_a_call_change_nothing(connect):
    x, y = regression(80)
    settings = {"jit_compile": True, "steps_per_execution": 3}
    model, reference = (compiled(by_map, **settings) for _ in range(2))
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(2)
    trainer = tfps.Trainer(model, connect(partitioner=partitioner))
    for fit in (trainer.fit, reference.fit):
        fit(x, y, epochs=2, **ORDER)
    assert_equal_states(model, reference)


def test_rates_that_callbacks_set_are_in_force_at_once(connect):
    x, y = regression(80)

    def make():
        chosen = o.OptimizerMap(o.Adam(0.05))
        chosen[".*bias"] = o.SGD(0.1)
        return o.MultiOptimizer(chosen)

    class Freeze(c.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                self.model.optimizer.optimizers[0].learning_rate = 0.0

    model, reference = compiled(make), compiled(make)
    trainer = tfps.Trainer(model, connect())
    logs = []
    for fit in (trainer.fit, reference.fit):
        reduce = c.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=100)
        history = fit(x, y, epochs=3, callbacks=[reduce, Freeze()], **ORDER).history
        logs.append([v for name, v in history.items() if "learning_rate" in name])
    np.testing.assert_allclose(*logs, rtol=1e-6)
    assert_equal_states(model, reference)
    model.optimizer.optimizers[0].learning_rate = 0.02
    reference.optimizer.optimizers[0].learning_rate = 0.02
    for fit in (trainer.fit, reference.fit):
        fit(x, y, **ORDER)
    assert_equal_states(model, reference)


def test_their_state_is_exported_and_restored_on_other_servers(connect):
    x, y = regression(80)
    first = tfps.Trainer(compiled(by_map), connect(ps=2))
    first.fit(x, y, **ORDER)
    exported = first.state.export()
    assert {"0/iterations", "1/iterations", "0/learning_rate"} <= set(
        exported.servers.optimizer.scalars
    )
    first.fit(x, y, **ORDER)
    expected = states(first.model)
    second = tfps.Trainer(compiled(by_map), connect(ps=1))
    second.state.restore(exported)
    second.fit(x, y, epochs=2, **ORDER)
    for name, a, b in zip(expected, states(second.model).values(), expected.values(), strict=True):
        # In buckets of another size, an element may be rounded in another way.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=name)


def test_tables_by_rows_have_their_own_optimizer(connect):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 50, [80, 3]), rng.normal(size=[80, 1]).astype("float32")

    def make():
        keras.utils.set_random_seed(1)
        layers = [keras.Input([3], dtype="int32"), keras.layers.Embedding(50, 4)]
        model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(1)])
        chosen = o.OptimizerMap(o.Adam(0.01))
        chosen[".*embeddings"] = o.SGD(0.5)
        model.compile(o.MultiOptimizer(chosen), "mse", jit_compile=False)
        return model

    model, reference = make(), make()
    trainer = tfps.Trainer(model, connect(), sparse_updates="lazy")
    for fit in (trainer.fit, reference.fit):
        fit(x, y, epochs=2, **ORDER)
    assert_equal_states(model, reference)


def test_two_workers_lose_no_update(connect):
    x, y = regression(320)
    model = compiled(by_map)
    tfps.Trainer(model, connect(2)).fit(x, y, **ORDER)
    assert [int(one.iterations) for one in model.optimizer.optimizers] == [20, 20]
    assert int(model.optimizer.iterations) == 20


def test_local_steps_are_refused(connect):
    with pytest.raises(tfps.ConfigError, match="MultiOptimizer"):
        tfps.Trainer(compiled(by_map), connect(), tfps.LocalSteps(4))


def test_a_set_without_an_optimizer_around_it(connect):
    """Its optimizers are built for their own variables; what belongs to none is not updated."""
    model = mlp()
    model.compile(None, "mse")
    program = StatelessModel(model)
    optimizers = OptimizerSet((o.Adam(0.1), o.SGD(0.2, momentum=0.9)), (0, 1, None, 1))
    inspection = Inspection([True] * 4, [], [False] * 4, [])
    plan = Plan(2, None, program, optimizers, inspection)
    assert [plan.sends(i) for i, _ in enumerate(plan.buckets)].count(False) == 1
    store = ParameterStore(plan, optimizers)
    assert len({b.kind.owner for b in plan.buckets if b.kind.treatment.trained}) == 2
    store.optimizer_copy.build()
    adam, sgd = optimizers.optimizers
    assert (len(adam.variables), len(sgd.variables)) == (2 + 2, 2 + 2)
    with store.copy.following(lambda error: True, lambda: None):
        sgd.learning_rate = 0.5
        adam.iterations.assign(7)
        store.copy.load_if_changed()
    scalars = store.export().optimizer.scalars
    assert scalars["1/learning_rate"] == 0.5
    assert (int(scalars["0/iterations"]), int(scalars["1/iterations"])) == (7, 0)
