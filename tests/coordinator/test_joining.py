"""Waiting for what was scheduled, and how much of it runs at once."""

import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.coordinator.conftest import BOTH, STOCK, UNRAISABLE, calling
from tfps.coordinator import closures, work_queue

pytestmark = UNRAISABLE


@BOTH
def test_join_waits_for_everything(make, kind, gate):
    coordinator = make(kind)
    with coordinator.strategy.scope():
        total = tf.Variable(0)
    blocked = coordinator.schedule(gate.function())

    @tf.function
    def add():
        total.assign_add(1, use_locking=True)

    for _ in range(20):
        coordinator.schedule(add)
    assert gate.entered.acquire(timeout=10)
    assert not coordinator.done()
    gate.open()
    coordinator.join()
    assert coordinator.done()
    assert total.numpy() == 20
    assert blocked.fetch()


@BOTH
def test_one_worker_runs_in_order(make, kind):
    coordinator = make(kind, workers=1)
    with coordinator.strategy.scope():
        last = tf.Variable(0)

    @tf.function
    def exchange(x):
        before = last.read_value()
        with tf.control_dependencies([before]):
            last.assign(x)
        return before

    values = [coordinator.schedule(exchange, args=(tf.constant(i),)) for i in range(1, 9)]
    assert coordinator.fetch(values) == list(range(8))


def test_a_slow_worker_does_not_hold_up_the_others(make, gate, double):
    coordinator = make(workers=2)
    coordinator.schedule(gate.function())
    assert gate.entered.acquire(timeout=10)
    assert coordinator.fetch([coordinator.schedule(double, args=(i,)) for i in range(4)]) == [
        0,
        2,
        4,
        6,
    ]
    assert not coordinator.done()
    gate.open()
    # A process must not connect anew while a function of its own waits for Python.
    coordinator.join()


@BOTH
def test_schedule_blocks_while_the_queue_is_full(make, kind, gate, monkeypatch, double):
    if kind == "stock":
        stock_module = __import__(STOCK.__module__, fromlist=["*"])
        monkeypatch.setattr(stock_module, "_CLOSURE_QUEUE_MAX_SIZE", 2)
    else:
        monkeypatch.setattr(work_queue, "_LIMIT", 2)
    coordinator = make(kind, workers=1)
    coordinator.schedule(gate.function())
    assert gate.entered.acquire(timeout=10)
    scheduled = threading.Semaphore(0)

    def fill():
        for i in range(3):
            coordinator.schedule(double, args=(i,))
            scheduled.release()

    thread = threading.Thread(target=fill)
    thread.start()
    assert scheduled.acquire(timeout=10)
    assert scheduled.acquire(timeout=10)
    assert not scheduled.acquire(timeout=0.2)
    gate.open()
    assert scheduled.acquire(timeout=10)
    thread.join()
    coordinator.join()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_calls_in_flight_on_one_worker(connect, in_flight):
    coordinator = tfps.ClusterCoordinator(connect(workers=1), in_flight=in_flight)
    meeting = threading.Barrier(2)

    def meet():
        try:
            meeting.wait(timeout=10 if in_flight == 2 else 0.2)
        except threading.BrokenBarrierError:
            return np.False_
        return np.True_

    f = calling(meet)
    assert coordinator.fetch([coordinator.schedule(f) for _ in range(2)]) == [in_flight == 2] * 2


def test_fewer_calls_in_flight(connect):
    coordinator = tfps.ClusterCoordinator(connect(workers=1), in_flight=3)
    lock, running, most = threading.Lock(), 0, 0

    def nap():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return np.bool_(True)

    f = calling(nap)
    for in_flight in (3, 1, 2):
        most = 0
        coordinator.__init__(coordinator.strategy, in_flight=in_flight)
        assert coordinator.in_flight == in_flight
        assert all(coordinator.fetch([coordinator.schedule(f) for _ in range(9)]))
        assert 1 <= most <= in_flight


def test_what_is_remembered_of_a_function_has_a_bound(connect, monkeypatch):
    """Python numbers that TensorFlow takes as one tensor make no graphs, and fill no memory."""
    monkeypatch.setattr(closures, "_SIGNATURES", 5)
    coordinator = tfps.ClusterCoordinator(connect(workers=1))
    twice = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([], tf.int32)])
    values = [coordinator.schedule(twice, args=(i,)) for i in range(40)]
    assert coordinator.fetch(values) == [2 * i for i in range(40)]
    (known,) = twice._tfps_traces.values()
    assert len(known) <= 6
