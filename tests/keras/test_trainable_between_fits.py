"""`trainable` between calls: as in Keras, it is in force from the next `compile` on."""

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import mlp, regression, relative_error

o = keras.optimizers
FIT = {"batch_size": 16, "shuffle": False, "verbose": 0}
DATA = regression(64)


def pair(strategy, frozen=False):
    """(what trains, its model) through a Trainer and by Keras."""
    made = []
    for run in ("tfps", "keras"):
        model = mlp(batch_norm=True)
        model.layers[0].trainable = not frozen
        model.compile(o.Adam(0.01), "mse", metrics=["mae"], jit_compile=False)
        made.append((tfps.Trainer(model, strategy) if run == "tfps" else model, model))
    return made


def assert_alike(pair):
    (trainer, mine), (_, theirs) = pair
    assert relative_error(mine, theirs) < 1e-5
    assert int(mine.optimizer.iterations) == int(theirs.optimizer.iterations)
    results = [one.evaluate(*DATA, verbose=0) for one in (trainer, theirs)]
    np.testing.assert_allclose(*results, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True], ids=["freeze", "unfreeze"])
def test_without_compile_it_has_no_effect(connect, frozen):
    both = pair(connect(), frozen)
    for one, model in both:
        one.fit(*DATA, **FIT)
        before = model.layers[0].get_weights()
        model.layers[0].trainable = frozen
        one.evaluate(*DATA, verbose=0)
        one.fit(*DATA, epochs=2, **FIT)
        moved = not np.array_equal(model.layers[0].get_weights()[0], before[0])
        assert moved is not frozen
    assert_alike(both)
    for one, model in both:  # And back again.
        model.layers[0].trainable = not frozen
        one.fit(*DATA, **FIT)
    assert_alike(both)


@pytest.mark.parametrize("frozen", [False, True], ids=["freeze", "unfreeze"])
def test_with_compile_it_has(connect, frozen):
    both = pair(connect(), frozen)
    for one, model in both:
        one.fit(*DATA, **FIT)
        before = model.layers[0].get_weights()
        model.layers[0].trainable = frozen
        model.compile(o.Adam(0.02), "mse", metrics=["mae"], jit_compile=False)
        one.fit(*DATA, epochs=2, **FIT)
        moved = not np.array_equal(model.layers[0].get_weights()[0], before[0])
        assert moved is frozen
        assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)
    assert_alike(both)


def test_compiling_with_the_old_optimizer(connect):
    """It goes on for fewer variables; for more, Keras refuses it, and so does a Trainer."""
    both = pair(connect())
    for one, model in both:
        one.fit(*DATA, **FIT)
        model.layers[0].trainable = False
        model.compile(model.optimizer, "mse", metrics=["mae"], jit_compile=False)
        one.fit(*DATA, **FIT)
    assert_alike(both)
    for one, model in pair(connect(), frozen=True):
        one.fit(*DATA, **FIT)
        model.layers[0].trainable = True
        model.compile(model.optimizer, "mse", metrics=["mae"], jit_compile=False)
        with pytest.raises(ValueError, match="Unknown variable"):
            one.fit(*DATA, **FIT)


def test_before_the_first_fit_it_has(connect):
    both = pair(connect())
    for one, model in both:
        one.evaluate(*DATA, verbose=0)
        model.layers[0].trainable = False
        one.fit(*DATA, **FIT)
    assert_alike(both)


def test_a_frozen_model_that_is_quantized(connect):
    outputs = []
    for run in ("tfps", "keras"):
        model = mlp()
        model.compile("sgd", "mse")
        model.trainable = False
        one = tfps.Trainer(model, connect()) if run == "tfps" else model
        floats = one.predict(DATA[0], verbose=0)
        model.quantize("int8")
        outputs.append(one.predict(DATA[0], verbose=0))
        assert not np.array_equal(outputs[-1], floats)
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
