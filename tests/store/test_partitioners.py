import itertools
import random

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

import tfps
from tests.conftest import tensorflows
from tfps.store import partitioners
from tfps.store.placement import Placement, VariableSpec, place

stock = tf.distribute.experimental.partitioners


def specs(shapes, slots=2.0):
    return [VariableSpec(f"v{i}", s, "float32", slots=slots) for i, s in enumerate(shapes)]


def transformer(vocabulary=8192, width=256, blocks=4):
    block = [(width,), (width,), (width, 4, 64), (4, 64)] * 3 + [
        (4, 64, width), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return [(vocabulary, width), (64, width), *block * blocks, (width, vocabulary)]


MODELS = {
    "transformer": transformer(),
    "one table": [(100_000, 64), (64, 1), (1,)],
    "equal layers": [(512, 512)] * 5,
    "wide rows": [(10, 50_000), (10,)],
    "many small": [(16,)] * 100,
}


@pytest.mark.parametrize("num_ps", [1, 2, 3, 7])
@pytest.mark.parametrize("name", MODELS)
def test_balanced(name, num_ps):
    model = specs(MODELS[name])
    row = max(s.nbytes // s.shape[0] for s in model) * 3
    placement = Placement.of(model, place(model, num_ps, partitioners.Balanced()), num_ps)
    mean = sum(placement.bytes_by_ps) / num_ps
    assert placement.imbalance <= max(1.1, 1 + row / mean)
    assert sum(placement.bytes_by_ps) == sum(s.nbytes for s in model) * 3


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 30)), min_size=1, max_size=25),
    st.integers(1, 6),
    st.integers(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_balanced_as_far_as_rows_allow(shapes, num_ps, slots):
    model = specs(shapes, slots)
    shards = place(model, num_ps, partitioners.Balanced())
    loads = Placement.of(model, shards, num_ps).bytes_by_ps
    row = max(s.load(s.shape[1]) for s in model)
    mean = sum(loads) / num_ps
    # Every poured variable is off by a row at most on each ps.
    assert max(loads) <= max(1.1 * mean, mean + row * len(shapes)) + 1
    for i, spec in enumerate(model):
        ranges = [(s.begin, s.end) for s in shards if s.variable == i]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == spec.size
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
        assert all(begin % spec.shape[1] == 0 for begin, _ in ranges)


def test_the_order_of_creation_is_no_matter():
    model = specs(MODELS["transformer"])
    shuffled = random.Random(0).sample(model, len(model))

    def where(order):
        shards = place(order, 3, partitioners.Balanced())
        return {(order[s.variable].path, s.begin, s.end, s.ps) for s in shards}

    assert where(model) == where(shuffled)


def test_small_variables_stay_whole():
    model = specs(MODELS["transformer"])
    shards = place(model, 4, partitioners.Balanced())
    split = {s.variable for s in shards if s.size != model[s.variable].size}
    assert split <= {0, len(model) - 1}


def test_state_of_the_optimizer_counts():
    model = [
        VariableSpec("trained", (100, 10), "float32", slots=2.0),
        VariableSpec("frozen", (300, 10), "float32", slots=0.0),
    ]
    placement = Placement.of(model, place(model, 2, partitioners.Balanced()), 2)
    assert placement.imbalance == 1.0
    assert [r.state_bytes for r in placement.rows] == [8000, 0]
    assert "fullest/mean 1.000" in str(placement)
    assert "| trained | 1 of 1 |" in placement.markdown()


@pytest.mark.parametrize("partitioner", [None, partitioners.Balanced()])
def test_what_travels_is_balanced_by_itself(partitioner):
    """A table fills up the memory of a ps, but not its network."""
    model = [
        VariableSpec("table", (1000, 10), "float32", by_rows=True),
        *(VariableSpec(f"dense{i}", (100, 10), "float32") for i in range(10)),
    ]
    shards = place(model, 2, partitioner)
    dense = [sum(s.size for s in shards if s.variable and s.ps == p) for p in (0, 1)]
    assert dense == [5000, 5000]
    if partitioner:
        assert Placement.of(model, shards, 2).imbalance == 1.0


def test_what_must_stay_whole_is_not_split():
    model = [VariableSpec("v", (100, 10), "float32", splittable=False)]
    assert len(place(model, 4, partitioners.Balanced())) == 1


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (partitioners.FixedShards(3), stock.FixedShardsPartitioner(3)),
        (partitioners.MinSize(1000, 4), stock.MinSizePartitioner(1000, 4)),
        (partitioners.MaxSize(1000), stock.MaxSizePartitioner(1000)),
        (partitioners.MaxSize(1000, 2), stock.MaxSizePartitioner(1000, 2)),
    ],
)
def test_meanings_are_tensorflows(ours, theirs):
    for shape in [(1000, 3), (2, 100), (7,)]:
        assert ours(tf.TensorShape(shape), tf.float32) == theirs(tf.TensorShape(shape), tf.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: partitioners.FixedShards(0),
        lambda: partitioners.MinSize(0),
        lambda: partitioners.MinSize(1, 0),
        lambda: partitioners.MaxSize(0),
        lambda: partitioners.Balanced(1.0),
    ],
)
def test_bad_settings(make):
    with pytest.raises(tfps.ConfigError, match="must be"):
        make()


@pytest.mark.parametrize(
    ("partitioner", "shards"), [(partitioners.Balanced(), 2), (partitioners.FixedShards(3), 3)]
)
def test_they_split_for_tensorflows_strategy(connect, partitioner, shards):
    strategy = connect(partitioner=partitioner)
    strategy = tensorflows(strategy, partitioner)
    with strategy.scope():
        large = tf.Variable(tf.zeros([5000, 8]))
        small = tf.Variable(tf.zeros([2]))
    assert len(large.variables) == shards
    if shards == 2:
        assert isinstance(small, tf.Variable)
    np.testing.assert_array_equal(sum(v.shape[0] for v in large.variables), 5000)


def test_outside_of_a_cluster_balanced_keeps_variables_whole():
    assert partitioners.Balanced()(tf.TensorShape([5000, 8]), tf.float32) == [1, 1]
