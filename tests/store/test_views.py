"""Laws of pulls as differences: a ps knows bit by bit what the worker holds."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfps.compression import BFloat16, Difference, Int8, OneBit, RandomK, Ternary, TopK, TwoBit
from tfps.store import views
from tfps.store.channel import Channel
from tfps.store.mailbox import ViewHandles

SHAPES = {0: (700,), 3: (20, 30)}

CODECS = [
    OneBit(block=128), TwoBit(), Int8(), Int8("stochastic"), TopK(0.1), RandomK(0.1), Ternary(),
    BFloat16(),
]  # fmt: skip

_names = itertools.count()


class Pair:
    """The two ends of the pulls of one worker, in this process."""

    def __init__(self, codec, dtype="float32"):
        self.codec, self.dtype = codec, dtype
        self.channels = {
            i: Channel(codec, s, dtype, ((int(np.prod(s)),),)) for i, s in SHAPES.items()
        }
        name = f"test_view_{next(_names)}"
        self.handles = ViewHandles(
            {i: views._variable(dtype, f"{name}_{i}") for i in SHAPES},
            {0: views._variable("int64", f"{name}_count")},
        )
        self.clear()
        self.copies = {i: tf.zeros(s, dtype) for i, s in SHAPES.items()}
        self._pull = tf.function(self._pulled, autograph=False)

    def clear(self):
        for handle in self.handles.values.values():
            tf.raw_ops.AssignVariableOp(resource=handle, value=tf.zeros([0], self.dtype))
        self.count = tf.constant(0, tf.int64)

    def pull(self, values, version=10**6):
        """Returns by how many bytes the pull was longer than the codec predicts."""
        version = tf.constant(version, tf.int64)
        self.copies, beyond, sound = self._pull(values, self.copies, self.count, version)
        self.count = tf.where(sound, self.count + 1, 0)
        return float(beyond)

    def views(self):
        """What the ps knows, as arrays."""
        found = {}
        for i, handle in self.handles.values.items():
            flat = tf.raw_ops.ReadVariableOp(resource=handle, dtype=self.dtype)
            found[i] = tf.reshape(flat, SHAPES[i])
        return found

    def _pulled(self, values, copies, count, version):
        sent, sound = views.send(self.channels, values, self.handles, count, version)
        after, beyond = views.receive(self.channels, sent, sent.whole, copies)
        return after, beyond, sound


def drifting(dtype="float32"):
    """Values that move on and on."""
    rng = np.random.default_rng(0)
    values = {i: rng.normal(size=s) for i, s in SHAPES.items()}
    while True:
        yield {i: tf.constant(v, dtype) for i, v in values.items()}
        values = {i: v + 0.01 * rng.normal(size=v.shape) for i, v in values.items()}


def require_equal(pair):
    for i, view in pair.views().items():
        np.testing.assert_array_equal(view.numpy(), pair.copies[i].numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_the_view_is_the_copy_bit_by_bit(codec, dtype):
    if dtype != "float32" and codec not in (OneBit(block=128), TopK(0.1)):
        pytest.skip("one codec with scales and one with places are enough")
    pair = Pair(Difference(codec), dtype)
    beyond = []
    for values in itertools.islice(drifting(dtype), 8):
        beyond.append(pair.pull(values))
        require_equal(pair)
    size = sum(int(np.prod(s)) for s in SHAPES.values()) * tf.as_dtype(dtype).size
    predicted = sum(c.payload_bytes for c in pair.channels.values())
    assert beyond == [size - predicted, *[0.0] * 7]


@pytest.mark.parametrize("codec", [OneBit(block=128), Int8(), TopK(0.1)], ids=repr)
def test_what_a_payload_leaves_out_comes_later(codec):
    pair = Pair(Difference(codec))
    first, *_, last = itertools.islice(drifting(), 10)
    pair.pull(first)
    for _ in range(60):
        pair.pull(last)
        require_equal(pair)
    for i, value in last.items():
        missing, moved = tf.norm(value - pair.copies[i]), tf.norm(value - first[i])
        assert missing < 0.2 * moved


def test_the_first_pull_each_refresh_and_pulls_of_a_young_model_are_whole():
    pair = Pair(Difference(OneBit(), refresh=4, whole_until=7))
    moves = drifting()

    def wholes(versions):
        found = []
        for version in versions:
            values = next(moves)
            beyond = pair.pull(values, version)
            equal = all(np.array_equal(values[i], pair.copies[i]) for i in SHAPES)
            assert equal == (beyond > 0)
            found.append(equal)
        return found

    assert wholes([5, 6]) == [True, True]
    assert wholes([7, 8, 9, 10, 11, 12, 13]) == [False, False, True, False, False, False, True]
    pair.clear()  # As for another life: its copy means nothing.
    pair.copies = {i: tf.fill(s, np.float32(9)) for i, s in SHAPES.items()}
    assert wholes([14, 15]) == [True, False]
    require_equal(pair)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_does_not_stay(bad):
    pair = Pair(Difference(OneBit(block=128)))
    moves = drifting()
    pair.pull(next(moves))
    values = next(moves)
    pair.pull({**values, 0: tf.tensor_scatter_nd_update(values[0], [[3]], [np.float32(bad)])})
    assert not np.isfinite(pair.copies[0].numpy()).all()
    values = next(moves)
    assert pair.pull(values) > 0
    for i in SHAPES:
        np.testing.assert_array_equal(pair.copies[i], values[i])
