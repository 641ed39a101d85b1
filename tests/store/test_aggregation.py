"""The laws of every aggregation with every optimizer of the servers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.store.rig import Rig, flat
from tfps.store.aggregation import Applied, Summed
from tfps.store.bucket_update import CompiledOptimizer, OuterOptimizer

AGGREGATIONS = {"applied": lambda o: Applied(o), "summed": Summed}
OPTIMIZERS = {
    "compiled": lambda store: CompiledOptimizer(store, False),
    "outer": lambda store: OuterOptimizer(store, False, keras.optimizers.Adam(0.1)),
}


def compiled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1), initial_scale=8.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_laws(connect, aggregation, optimizer):
    rig = Rig(
        connect(),
        compiled(),
        lazy=optimizer == "compiled",
        aggregation=lambda store: AGGREGATIONS[aggregation](OPTIMIZERS[optimizer](store)),
    )
    in_rounds = aggregation == "summed"
    fresh, first = rig.aggregation.export(), rig.store.export()
    form = _form(rig.pusher.handles())

    # A push whose gradients overflowed changes no variable that is trained, and no version.
    receipt = rig.push(0, finite=False)
    assert not bool(receipt.updated)
    state = rig.store.export()
    for i in range(4):
        np.testing.assert_array_equal(state.values[i], first.values[i])
    assert flat(state.optimizer) == flat(first.optimizer)
    np.testing.assert_array_equal(state.versions, first.versions)
    assert float(state.loss_scale.scale) == 4.0
    assert flat(rig.aggregation.export()) == flat(fresh)

    # One that counts does, and is answered with its staleness.
    receipt = rig.push(1)
    assert bool(receipt.updated) and int(receipt.staleness) == 0
    second = rig.store.export()
    for i in range(3):
        assert np.any(second.values[i] != first.values[i])
    # What the loss does not depend on, and what is frozen, stay.
    for i in (3, 6):
        np.testing.assert_array_equal(second.values[i], first.values[i])
    np.testing.assert_array_equal(second.versions, first.versions + 1)
    assert int(rig.push(1).staleness) == 1

    # The first of two in a round changes nothing yet, and can be forgotten.
    third = rig.store.export()
    assert bool(rig.push(2, expected=2).updated) == (not in_rounds)
    if in_rounds:
        state = rig.store.export()
        for i in (0, 1, 2, 4):
            np.testing.assert_array_equal(state.values[i], third.values[i])
    rig.pusher.clear()
    assert flat(rig.aggregation.export()._replace(outer=fresh.outer)) == flat(fresh)

    # The form of the handles is that of the arguments of traced steps.
    assert _form(rig.pusher.handles()) == form

    # A counter counts all that came, whatever its gradients were.
    assert int(rig.store.export().values[5]) == 4 * 3


def _form(handles):
    # As text, because equal dictionaries are equal in whatever order.
    return repr(tf.nest.map_structure(lambda t: None if t is None else t.dtype, handles))


def test_a_round_is_the_sum_of_its_pushes(connect):
    """Two pushes of a round do what one with their sum does."""
    rigs = {
        name: Rig(
            connect(),
            keras.optimizers.SGD(0.1),
            lazy=True,
            aggregation=lambda store, make=make: make(CompiledOptimizer(store, False)),
        )
        for name, make in AGGREGATIONS.items()
    }
    for seed in (0, 1):
        rigs["applied"].push(seed)
        updated = bool(rigs["summed"].push(seed, expected=2).updated)
        assert updated == (seed == 1)
    # Of SGD without momentum, two updates are one with the sum.
    applied, summed = (rig.store.export() for rig in rigs.values())
    for i in range(3):
        np.testing.assert_allclose(applied.values[i], summed.values[i], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(applied.versions, 2)
    np.testing.assert_array_equal(summed.versions, 1)
