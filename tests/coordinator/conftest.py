"""`tfps.ClusterCoordinator` and TensorFlow's, of which both promises are asked."""

import collections
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute.coordinator import cluster_coordinator

import tfps
from tests.conftest import tensorflows
from tfps.coordinator import recovery

STOCK = tf.distribute.coordinator.ClusterCoordinator
BOTH = pytest.mark.parametrize("kind", ["tfps", "stock"])
# TensorFlow's executors complain when they are collected after an error.
UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
Point = collections.namedtuple("Point", "x y")


@pytest.fixture
def make(connect):
    """`make(kind, workers)`: a coordinator on a strategy of the same kind."""

    def get(kind="tfps", workers=2):
        strategy = connect(workers)
        if kind == "stock":
            return STOCK(tensorflows(strategy))
        return tfps.ClusterCoordinator(strategy)

    return get


def broken():
    """What the loss of a connection raises."""
    return tf.errors.UnavailableError(None, None, "Socket closed")


def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def put(coordinator, function, args=(), worker=None):
    """Puts a closure of TensorFlow's class into the coordinator's queue; returns its result."""
    queue = coordinator._cluster.closure_queue
    closure = cluster_coordinator.Closure(function, queue._cancellation_mgr, args)
    result = closure.build_output_remote_value()
    if worker is None:
        queue.put(closure)
    else:
        queue._inflight_closure_count += 1
        queue.put(closure, tag=worker)
    return result


def calling(function):
    """A `tf.function` that calls Python: embedded workers share this process."""

    @tf.function
    def call():
        return tf.ensure_shape(tf.numpy_function(function, [], tf.bool), [])

    return call


@pytest.fixture
def by_hand(monkeypatch):
    """Nobody is taken in but by the test."""
    monkeypatch.setattr(recovery.reconnecting, "reconnect", lambda members: frozenset())


@pytest.fixture
def gate():
    """A function that waits on its worker until `gate.open()`."""

    class Gate:
        def __init__(self):
            self._opened, self.entered = threading.Event(), threading.Semaphore(0)
            self.open = self._opened.set

        @property
        def opened(self):
            return self._opened.is_set()

        def wait(self):
            self.entered.release()
            return np.bool_(self._opened.wait(30))

        def function(self):
            return calling(self.wait)

    made = Gate()
    yield made
    made.open()


# Connecting to a cluster of another size makes servers forget the functions that they knew.


@pytest.fixture
def double():
    return tf.function(lambda x: 2 * x)


@pytest.fixture
def positive():
    @tf.function
    def f(x):
        tf.debugging.assert_greater(x, 0, "not positive")
        return x

    return f
