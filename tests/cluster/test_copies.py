"""Tensors of the chief in calls on other tasks."""

import threading
import types

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps import _tf_copies, _tf_functions
from tfps.cluster import turns
from tfps.cluster.devices import worker_device
from tfps.cluster.remote_function import RemoteFunction

VECTOR = tf.TensorSpec([3], tf.float32)


@pytest.fixture
def given(monkeypatch):
    """The inputs of every graph that is called from now on."""
    found: list[list[tf.Tensor]] = []
    real = _tf_functions.execute

    def noting(execute):
        def noted(name, outputs, inputs, *rest):
            found.append(list(inputs))
            return execute(name, outputs, inputs, *rest)

        return noted

    stand_in = types.SimpleNamespace(
        execute=noting(real.execute),
        execute_with_cancellation=noting(real.execute_with_cancellation),
    )
    monkeypatch.setattr(_tf_functions, "execute", stand_in)
    return found


def require_nothing_of_chief(given):
    assert given
    for x in [x for inputs in given for x in inputs if x.dtype != tf.resource]:
        assert "/job:worker/" in x.device


def test_a_call_is_given_copies(connect, given):
    connect(workers=2)
    captured, x = tf.constant([1.0, 2.0, 3.0]), tf.constant([10.0, 10.0, 10.0])
    f = RemoteFunction(
        lambda x, *, count: x * tf.cast(count, tf.float32) + captured,
        VECTOR,
        numbers={"count": tf.TensorSpec([], tf.int32)},
    )
    for worker in (0, 1, 0):
        with tf.device(worker_device(worker)):
            out = f(x, count=2)
        assert f"task:{worker}" in out.device
        np.testing.assert_array_equal(out.numpy(), [21, 22, 23])
    require_nothing_of_chief(given)
    # What was captured is there already.
    assert given[0][-1] is given[2][-1]
    assert given[0][-2] is not given[2][-2]


def test_a_function_on_the_chief_is_given_the_tensors_themselves(connect, given):
    connect(workers=1)
    x = tf.constant([1.0, 2.0, 3.0])
    f = RemoteFunction(
        lambda x, *, count: x + tf.cast(count, tf.float32),
        VECTOR,
        numbers={"count": tf.TensorSpec([], tf.int32)},
    )
    with tf.device(None):
        np.testing.assert_array_equal(f(x, count=1).numpy(), [2, 3, 4])
    assert given[0][-1] is x


def test_scheduled_functions_are_given_copies(connect, given):
    strategy = connect(workers=2)
    captured = tf.constant([1.0, 2.0, 3.0])
    coordinator = tfps.ClusterCoordinator(strategy)

    @tf.function
    def add(x, text):
        return x + captured, tf.strings.length(text)

    results = [coordinator.schedule(add, (tf.fill([3], float(i)), "four")) for i in range(5)]
    for i, result in enumerate(coordinator.fetch(results)):
        np.testing.assert_array_equal(result[0], np.array([1, 2, 3]) + i)
        assert result[1] == 4
    require_nothing_of_chief(given)


@pytest.mark.parametrize("value", [np.arange(6).reshape(2, 3), np.array([b"a", b""]), 2.5, True])
def test_copies_are_equal(connect, value):
    connect(workers=2)
    with tf.device(worker_device(1)):
        task = _tf_copies.task_in_scope()
    tensors = [tf.constant(value), tf.constant(value)]
    copies = _tf_copies.copied(tensors, task)
    for copy in copies:
        assert "task:1" in copy.device
        np.testing.assert_array_equal(copy.numpy(), value)


def test_what_a_task_has_ends_with_its_life(connect):
    connect(workers=2)
    made = []
    residents = _tf_copies.Residents(lambda cpu: made.append(cpu) or [])
    with tf.device(worker_device(1)):
        task = _tf_copies.task_in_scope()
    residents.on(task), residents.on(task)
    assert made == [task]
    _tf_copies.joined("worker", 0)
    residents.on(task)
    assert made == [task]
    _tf_copies.joined("worker", 1)
    residents.on(task)
    assert made == [task] * 2
    _tf_copies.connected_anew()
    residents.on(task)
    assert made == [task] * 3


def test_this_process_is_no_other_task(connect):
    connect(workers=1)
    assert _tf_copies.task_in_scope() is None
    with tf.device("/device:CPU:0"):
        assert _tf_copies.task_in_scope() is None


@pytest.mark.parametrize("first", [turns.request, turns.change])
@pytest.mark.parametrize("second", [turns.request, turns.change])
def test_only_requests_go_on_side_by_side(first, second):
    order = []

    def run():
        with second():
            order.append("second")

    with first():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(5 if first is second is turns.request else 0.05)
        order.append("first")
    thread.join(5)
    both_ask = first is second is turns.request
    assert order == (["second", "first"] if both_ask else ["first", "second"])


def test_nobody_waits_for_ever_for_a_turn():
    with turns.request(), turns.change(0.01), turns.request(0.01), turns.change(0.01):
        pass
    assert turns._requests == turns._changes == 0
