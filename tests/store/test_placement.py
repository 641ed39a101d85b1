import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfps.store.placement import VariableSpec, place

partitioners = tf.distribute.experimental.partitioners


def spec(shape, **kw):
    return VariableSpec("v", shape, "float32", **kw)


def loads(specs, shards, num_ps):
    load = np.zeros(num_ps)
    for s in shards:
        load[s.ps] += s.size * specs[s.variable].itemsize
    return load


@pytest.mark.parametrize("order", [1, -1])
def test_bytes_are_balanced_where_dealing_in_turn_is_not(order):
    # Pairs of a large and a small variable: in turn, one ps gets all the large ones.
    specs = [spec(s) for s in [(1000, 10), (10,)] * 8][::order]
    load = loads(specs, place(specs, 2), 2)
    assert load.max() / load.mean() < 1.01


def test_whole_without_partitioner():
    specs = [spec((7, 3)), spec(()), spec((0, 4))]
    shards = place(specs, 3)
    assert [(s.begin, s.end) for s in shards] == [(0, 21), (0, 1), (0, 0)]


def test_splits_rows_as_tensorflow_does():
    specs = [spec((13, 2)), spec((2,)), spec(()), spec((10,), splittable=False)]
    shards = place(specs, 2, partitioners.FixedShardsPartitioner(5))
    rows = [(s.end - s.begin) // 2 for s in shards if s.variable == 0]
    assert rows == [3, 3, 3, 2, 2]
    assert len([s for s in shards if s.variable == 1]) == 2
    assert len([s for s in shards if s.variable in (2, 3)]) == 2


def test_shards_cover_every_element_once():
    specs = [spec((n, 3)) for n in (1, 5, 100, 64)]
    shards = place(specs, 3, partitioners.MinSizePartitioner(64, max_shards=3))
    for i, s in enumerate(specs):
        ranges = [(x.begin, x.end) for x in shards if x.variable == i]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == s.size
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
