"""Clusters that tests share, and small models."""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Its plugin would import it after the tests, when CPython 3.11's parser was seen to fail.
import hypothesis  # noqa: F401
import keras
import numpy as np
import pytest

import tfps
from tfps.cluster import sockets

_clusters: dict = {}
_current: list = []


@pytest.fixture
def connect():
    """`connect(workers, ps, partitioner)`: a strategy on an embedded cluster.

    Servers never end, and have a hundred threads each, so there is one cluster of a size.
    A process is connected to one at a time, each time from a port that no other server of
    its own has.
    """

    def get(workers=1, ps=2, partitioner=None):
        size = workers, ps
        if size not in _clusters:
            _clusters[size] = tfps.LocalCluster(workers, ps)
        elif size not in _current:
            cluster = _clusters[size]
            cluster.spec["chief"][:] = [f"127.0.0.1:{port}" for port in sockets.free_ports(1)]
            cluster.connected = False
        _current[:] = [size]
        return tfps.ParameterServerStrategy(_clusters[size], partitioner)

    return get


@pytest.fixture(autouse=True)
def _clean_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def mlp(batch_norm=False, dropout=0.0, inputs=8, units=16, outputs=1):
    """A small dense network with reproducible weights."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input([inputs]), keras.layers.Dense(units, activation="tanh")]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(momentum=0.9))
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    return keras.Sequential([*layers, keras.layers.Dense(outputs)])


def regression(examples=320, inputs=8):
    """x float32 [examples, inputs] and y float32 [examples, 1], a smooth function of it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, inputs)).astype(np.float32)
    return x, np.sin(x[:, :1] + x[:, 1:2])


def relative_error(model, reference) -> float:
    """The largest difference of two models' weights, relative to each variable's largest value."""
    return max(
        float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))
        for a, b in zip(model.get_weights(), reference.get_weights(), strict=True)
    )


class Counting(keras.Model):
    """Its gradient is 1 everywhere, and it counts on the servers the batches that it sees."""

    def build(self, shape):
        self.w = self.add_weight(shape=(4,), initializer="zeros")
        self.batches = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, x, training=False):
        if training:
            self.batches.assign_add(1)
        return keras.ops.sum(self.w) + 0.0 * x

    @classmethod
    def compiled(cls, optimizer, **compile_args):
        model = cls()
        model.compile(optimizer, loss=lambda y, p: p, jit_compile=False, **compile_args)
        return model


class Watched:
    """A policy's schedule that notes what happens.

    Attributes:
      log: (event, arguments.., time in s) of each: "started" a worker; "applied", "held"
        or "dropped" what it computed in so many steps; "due" the shares of a round.
    """

    def __init__(self, schedule, log, in_rounds):
        self._schedule, self.log = schedule, log
        self._otherwise = "dropped" if in_rounds else "applied"

    def _note(self, *event):
        self.log.append((*event, time.perf_counter()))

    def started(self, worker):
        self._note("started", worker)
        self._schedule.started(worker)

    def finished(self, worker, steps, weight):
        held = self._schedule.finished(worker, steps, weight)
        self._note("held" if held else self._otherwise, worker, steps)
        return held

    def due(self):
        if due := self._schedule.due():
            self._note("due", due)
        return due

    def __getattr__(self, name):
        return getattr(self._schedule, name)


def watched(policy):
    """(the policy, the log of all of its schedules)."""
    log = []
    make = policy.schedule
    object.__setattr__(policy, "schedule", lambda: Watched(make(), log, policy.in_rounds))
    return policy, log
