"""All codecs, two of a user's, and what their tests have in common."""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from tfps.compression import (
    DGC,
    Auto,
    BFloat16,
    Codec,
    Difference,
    ErrorFeedback,
    Float16,
    Identity,
    Int8,
    OneBit,
    PowerSGD,
    RandomK,
    Ternary,
    TopK,
    TwoBit,
    adapted,
)
from tfps.compression.adapted import Adapted


@dataclasses.dataclass(frozen=True)
class Halves(Codec):
    """A codec as a user writes it: a subclass, which sends every second element."""

    @property
    def biased(self):
        return True

    def encode(self, tensor, state, seed):
        del seed
        return (tf.reshape(tf.cast(tensor, tf.float32), [-1])[::2],), state

    def decode(self, payload, shape, dtype):
        (sent,) = payload
        size = math.prod(shape)
        both = tf.reshape(tf.stack([sent, tf.zeros_like(sent)], 1), [-1])[:size]
        return tf.cast(tf.reshape(both, shape), dtype)

    def payload_bytes(self, shape, dtype):
        del dtype
        return (math.prod(shape) + 1) // 2 * 4


class Signed:
    """A codec as a user writes it: no subclass, only the contract. It sends signs in bytes."""

    min_bytes = 4096

    def encode(self, tensor, state, seed):
        del seed
        return (tf.cast(tf.sign(tensor), tf.int8),), state

    def decode(self, payload, shape, dtype):
        return tf.cast(tf.reshape(payload[0], shape), dtype)

    def payload_bytes(self, shape, dtype):
        del dtype
        return math.prod(shape)


PLAIN = [
    Identity(),
    Float16(),
    BFloat16(),
    Int8(),
    Int8("stochastic", block=100),
    Ternary(),
    OneBit(),
    TwoBit(),
    TopK(0.05),
    RandomK(0.1),
    RandomK(0.3, unbiased=False),
    PowerSGD(2),
    Auto(),
]
PULLED = [Difference(TwoBit())]
WRAPPED = [
    ErrorFeedback(c)
    for c in (Float16(), Int8(), OneBit(), TwoBit(), TopK(0.05), RandomK(0.3), PowerSGD(2))
]
DGCS = [DGC(0.05), DGC(0.05, momentum=0.0, warmup=1)]
OWN = [Halves(), ErrorFeedback(Halves()), adapted(Signed())]
PUBLIC = [*PLAIN, *PULLED, *WRAPPED, *DGCS]
TABLE = [*PUBLIC, *OWN]
SHAPES = [(1,), (7,), (8,), (1023,), (1025,), (30, 50), (3, 4, 5, 20), (1, 40)]


def name(codec):
    if isinstance(codec, ErrorFeedback):
        return f"feedback-{name(codec.codec)}"
    if isinstance(codec, Adapted):
        return type(codec.codec).__name__
    fields = [f.name for f in dataclasses.fields(codec) if not f.kw_only]
    return "-".join([type(codec).__name__, *(str(getattr(codec, f)) for f in fields)])


@contextlib.contextmanager
def compiled():
    """Within `eagerly`: functions are traced and compiled."""
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(False)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(eager)


each = pytest.mark.parametrize("codec", TABLE, ids=name)


def seed(step=0, tensor=0):
    return tf.constant([step, tensor], tf.int32)


def normal(shape, key=0):
    return np.random.default_rng(key).normal(size=shape).astype(np.float32)


def nbytes(payload):
    return sum(int(tf.size(t)) * t.dtype.size for t in payload)


def run(codec, gradients, dtype=tf.float32):
    """Encodes and decodes step by step: what arrived, the payloads, the last state."""
    shape = gradients[0].shape
    state = codec.initial_state(shape)
    arrived, payloads = [], []
    for step, g in enumerate(gradients):
        payload, state = codec.encode(tf.cast(g, dtype), state, seed(step))
        arrived.append(codec.decode(payload, shape, dtype))
        payloads.append(payload)
    return arrived, payloads, state


def low_rank(rank, shape=(60, 40)):
    return normal((shape[0], rank), 1) @ normal((rank, shape[1]), 2)
