import numpy as np
import pytest
import tensorflow as tf

from tfps.store.buckets import build_buckets, pack, unpack
from tfps.store.placement import VariableSpec, place
from tfps.store.treatment import FROZEN, TRAIN, Kind

SHAPES = [(300, 7), (), (5,), (64, 64), (0, 3), (1000,)]


def build(bucket_bytes=4096, shards=3, alone=()):
    specs = [
        VariableSpec(f"v{i}", s, "float16" if i == 2 else "float32") for i, s in enumerate(SHAPES)
    ]
    placed = place(specs, 2, tf.distribute.experimental.partitioners.FixedShardsPartitioner(shards))
    kinds = [Kind(TRAIN if i % 2 else FROZEN) for i in range(len(specs))]
    flags = [i in alone for i in range(len(specs))]
    return specs, build_buckets(specs, placed, kinds, flags, bucket_bytes=bucket_bytes)


@pytest.mark.parametrize("bucket_bytes", [16, 4096, 1 << 30])
@pytest.mark.parametrize("shards", [1, 3])
def test_unpack_inverts_pack(bucket_bytes, shards):
    specs, buckets = build(bucket_bytes, shards)
    rng = np.random.default_rng(0)
    values = {i: tf.constant(rng.normal(size=s.shape), s.dtype) for i, s in enumerate(specs)}
    packed = pack(buckets, values)
    assert [tuple(p.shape) for p in packed] == [b.shape for b in buckets]
    unpacked = unpack(buckets, packed, specs)
    for i in values:
        np.testing.assert_array_equal(unpacked[i], values[i])


def test_buckets_hold_alike_shards_up_to_the_limit():
    specs, buckets = build(bucket_bytes=4096)
    for b in buckets:
        assert {s.ps for s in b.shards} == {b.ps}
        assert {specs[s.variable].dtype for s in b.shards} == {b.dtype}
        assert b.nbytes <= 4096
    assert len({b.kind for b in buckets}) == 2
    assert sum(b.size for b in buckets) == sum(s.size for s in specs)


def test_a_variable_alone_keeps_its_shape():
    _, buckets = build(bucket_bytes=1 << 30, shards=1, alone=(3,))
    (bucket,) = [b for b in buckets if any(s.variable == 3 for s in b.shards)]
    assert bucket.shape == (64, 64)
    assert len(bucket.shards) == 1
