"""What is on the servers can be read, and written back in whatever way it is laid out."""

import itertools

import keras
import numpy as np
import pytest

import tfps
from tests.store.rig import Rig, flat
from tfps.store.aggregation import Applied, Summed
from tfps.store.bucket_update import CompiledOptimizer, OuterOptimizer

opt = keras.optimizers

TWO_SHARDS = tfps.partitioners.FixedShards(2)


def scaled():
    return opt.LossScaleOptimizer(opt.SGD(0.1, momentum=0.9), initial_scale=8.0)


def outer(store):
    return Applied(OuterOptimizer(store, False, opt.SGD(0.7, momentum=0.9, nesterov=True)))


def summed(store):
    return Summed(CompiledOptimizer(store, False))


# (optimizer, whether tables are updated by rows, aggregation, pushes in a round)
CASES = {
    "accumulation": (lambda: opt.Adam(0.1, gradient_accumulation_steps=3), False, None, 1),
    "adafactor": (lambda: opt.Adafactor(0.1), False, None, 1),
    "averages": (lambda: opt.Nadam(0.1, use_ema=True, ema_momentum=0.9), False, None, 1),
    "slots by rows": (lambda: opt.Nadam(0.1), True, None, 1),
    "loss scale": (scaled, False, None, 1),
    "outer": (lambda: opt.Adam(0.1), False, outer, 1),
    "open round": (lambda: opt.SGD(0.1, momentum=0.9), False, summed, 2),
    "open round by rows": (lambda: opt.AdamW(0.1), True, summed, 2),
}


def make(strategy, case, **kwargs):
    optimizer, lazy, aggregation, _ = CASES[case]
    if aggregation:
        kwargs["aggregation"] = aggregation
    return Rig(strategy, optimizer(), lazy=lazy, **kwargs)


def state_of(rig):
    return rig.store.export(), rig.pusher.export()


def comparable(states):
    """All of a state but what has an entry for each server."""
    found = flat(dict(enumerate(states)))
    return {k: v for k, v in found.items() if k[-1] not in ("versions", "counts")}


# The other cases have all that these have, and more, or `tests/training` holds it beside Keras.
SOAK = "accumulation", "open round"
THREE, ONE = (3, 48, TWO_SHARDS), (1, 1 << 20, None)


@pytest.mark.parametrize(
    "case, to",
    [
        pytest.param(case, to, marks=[] if case not in SOAK and to is mine else pytest.mark.soak)
        for case, mine in zip(CASES, itertools.cycle([THREE, ONE]))
        for to in (THREE, ONE)
    ],
)
def test_a_restored_store_goes_on_bit_by_bit(connect, case, to):
    """From two servers to three with small buckets, or from two to one."""
    whole = case == "adafactor"
    expected = CASES[case][3]
    first = make(connect(), case)
    for seed in range(3):
        first.push(seed, expected=expected)
    before = state_of(first)
    first.push(3, expected=expected)
    after = state_of(first)
    assert flat(dict(enumerate(before))) != flat(dict(enumerate(after)))

    ps, bucket_bytes, partitioner = to
    strategy = connect(ps=ps, partitioner=None if whole else partitioner)
    other = make(strategy, case, bucket_bytes=bucket_bytes, seed=2)
    other.store.restore(before[0])
    other.pusher.restore(before[1])
    assert comparable(state_of(other)) == comparable(before)
    other.push(3, expected=expected)
    assert comparable(state_of(other)) == comparable(after)


def test_the_model_gets_the_values(connect):
    """And the model's copy does not take them back when a run begins."""
    state = make(connect(), "accumulation", seed=1).store.export()
    other = make(connect(), "accumulation", seed=2)
    other.store.restore(state)
    assert flat(other.store.export()) == flat(state)
    assert not other.store.load_if_changed()
    for i, variable in enumerate(other.store.plan.variables):
        np.testing.assert_array_equal(variable.numpy(), state.values[i])


def test_slots_have_the_variables_shape_and_the_optimizers_name(connect):
    rig = make(connect(), "slots by rows")
    rig.push(0)
    state = rig.store.export()
    assert state.optimizer.scalars.keys() == {"iterations", "u_product"}
    assert int(state.optimizer.scalars["iterations"]) == 1
    assert state.optimizer.slots.keys() == {0, 1, 2}
    for i, slots in state.optimizer.slots.items():
        assert slots.keys() == {"momentums", "velocities"}
        assert {s.shape for s in slots.values()} == {state.values[i].shape}
    assert state.paths[1].endswith("kernel")
    np.testing.assert_array_equal(state.versions, [1, 1])


def test_servers_that_disagree_give_the_largest(connect):
    rig = make(connect(), "accumulation")
    for version, variable in zip([7, 2], rig.store.versions, strict=True):
        variable.assign(version)
    rig.store.optimizers[0].iterations.assign(9)
    state = rig.store.export()
    assert int(state.optimizer.scalars["iterations"]) == 9
    np.testing.assert_array_equal(state.versions, [7, 2])
    other = make(connect(ps=3), "accumulation")
    other.store.restore(state)
    assert other.store.iterations() == 9
    np.testing.assert_array_equal(other.store.export().versions, [7, 7, 7])


def test_a_state_of_another_model_or_optimizer_is_refused(connect):
    store = make(connect(), "open round").store
    state = store.export()
    with pytest.raises(tfps.ConfigError, match=r"has iterations, momentums, but .* velocities"):
        make(connect(), "outer").store.restore(state)
    with pytest.raises(tfps.ConfigError, match="compiled alike"):
        make(connect(), "loss scale").store.restore(state)
    values = {**state.values, 1: np.zeros([2, 2], np.float32)}
    with pytest.raises(tfps.ConfigError, match=r"shapes .*\(2, 2\)"):
        store.restore(state._replace(values=values))
