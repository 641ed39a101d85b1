"""Errors, and lost servers."""

import threading

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.coordinator.conftest import BOTH, UNRAISABLE, Point, calling
from tfps.cluster import health, members
from tfps.coordinator import faults, recovery, work_queue

pytestmark = UNRAISABLE


@BOTH
@pytest.mark.parametrize("surface", ["join", "schedule", "done"])
def test_an_error_cancels_the_queue_and_is_raised_once(make, kind, surface, gate, positive):
    coordinator = make(kind, workers=1)
    coordinator.schedule(gate.function())
    assert gate.entered.acquire(timeout=10)
    bad = coordinator.schedule(positive, args=(tf.constant(-1),))
    later = [coordinator.schedule(positive, args=(tf.constant(1),)) for _ in range(3)]
    gate.open()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        bad.fetch()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        if surface == "schedule":
            coordinator.schedule(positive, args=(tf.constant(1),))
        elif surface == "done":
            coordinator.done()
        else:
            coordinator.join()
    for value in later:
        if kind == "tfps":
            with pytest.raises(tf.errors.CancelledError, match="Please reschedule"):
                value.get()
    coordinator.join()
    assert coordinator.done()
    assert coordinator.schedule(positive, args=(tf.constant(2),)).fetch() == 2
    coordinator.join()


def test_an_error_names_the_worker(make, positive):
    coordinator = make(workers=2)
    address = coordinator.strategy.cluster.spec["worker"]
    value = coordinator.schedule(positive, args=(tf.constant(-1),))
    with pytest.raises(tfps.WorkerError, match=r"worker \d \(\S+\) failed: .*not posi") as caught:
        coordinator.join()
    error = caught.value
    assert isinstance(error, tf.errors.InvalidArgumentError)
    assert error.error_code == tf.errors.INVALID_ARGUMENT
    assert error.address == address[error.worker]
    assert error.address in str(error)
    assert "not positive" in error.message
    assert isinstance(error.__cause__, tf.errors.InvalidArgumentError)
    with pytest.raises(tfps.WorkerError):
        value.get()


@BOTH
def test_fetch_does_not_wait_for_what_comes_after_an_error(make, kind, gate, positive):
    coordinator = make(kind, workers=2)
    slow = coordinator.schedule(gate.function())
    assert gate.entered.acquire(timeout=10)
    bad = coordinator.schedule(positive, args=(tf.constant(-1),))
    # Whoever waits for the slow one sees the gate open.
    timer = threading.Timer(5, gate.open)
    timer.start()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        coordinator.fetch([bad, slow])
    assert not gate.opened
    timer.cancel()
    gate.open()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        coordinator.join()


def test_an_error_of_python_names_the_worker(make, double):
    coordinator = make(workers=1)
    resource = coordinator._create_per_worker_resources(lambda: 1 // 0)
    coordinator.schedule(
        tf.function(lambda x: x).get_concrete_function(tf.TensorSpec([])), resource
    )
    with pytest.raises(ZeroDivisionError) as caught:
        coordinator.join()
    assert "worker 0 (127.0.0.1:" in caught.value.__notes__[0]


@BOTH
def test_what_cannot_be_scheduled(make, kind, double):
    coordinator = make(kind)
    value = coordinator.schedule(double, args=(1,))
    for args, kwargs in [((value,), None), (None, {"x": [value]}), ((Point(value, 1),), None)]:
        with pytest.raises(ValueError, match="RemoteValue"):
            coordinator.schedule(double, args=args, kwargs=kwargs)
    with pytest.raises(TypeError, match=r"tf\.function"):
        coordinator.schedule(lambda: 1)
    coordinator.join()


def test_an_error_while_tracing_leaves_the_coordinator_usable(make, double):
    coordinator = make()
    with pytest.raises(TypeError):
        coordinator.schedule(double, args=(1, 2))
    assert coordinator.schedule(double, args=(1,)).fetch() == 2


@pytest.mark.parametrize("wait", ["join", "fetch", "done", "schedule"])
def test_a_lost_ps_is_noticed_by_whoever_waits(make, gate, monkeypatch, wait, double):
    coordinator = make(workers=1)
    value = coordinator.schedule(gate.function())
    waiting = coordinator.schedule(double, args=(1,))
    assert gate.entered.acquire(timeout=10)
    monkeypatch.setattr(health, "DRAIN", 0.1)
    monkeypatch.setattr(work_queue, "_LIMIT", 1)
    monkeypatch.setattr(work_queue, "_LOOK", 0.05)
    monkeypatch.setattr(recovery.reconnecting, "reconnect", lambda members: frozenset())
    known, ps = members.of(coordinator.strategy.cluster), members.Task("ps", 1)
    known.lose(ps, "is gone")
    with pytest.raises(tfps.TaskLost, match=r"ps 1 \(127.0.0.1:\d+\) is gone; its var") as caught:
        if wait == "fetch":
            value.get()
        elif wait == "schedule":
            coordinator.schedule(double, args=(1,))
        elif wait == "join":
            coordinator.join()
        else:
            while not coordinator.done():
                threading.Event().wait(0.01)
    assert isinstance(caught.value, tf.errors.UnavailableError)
    with pytest.raises(tf.errors.CancelledError):
        waiting.get()
    if wait == "fetch":
        with pytest.raises(tfps.TaskLost):
            coordinator.join()
    gate.open()
    # The loss has been told; what does not need the ps goes on, whether or not it comes back.
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    known.admit(ps, None)
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    coordinator.join()


def test_a_fault_that_passes_is_no_error(make):
    """A function that fails as one whose connection broke is run again, but not for ever."""
    coordinator = make(workers=1)
    failures = iter(range(100))

    def fail():
        if next(failures) in (*range(faults.MOST_FAULTS), *range(50, 100)):
            raise tf.errors.UnavailableError(None, None, "Socket closed")
        return np.bool_(True)

    call = calling(fail)
    assert coordinator.schedule(call).fetch()
    coordinator.join()
    while next(failures) < 49:
        pass
    coordinator.schedule(call)
    with pytest.raises(tfps.WorkerError, match="Socket closed"):
        coordinator.join()
    assert next(failures) == 50 + faults.MOST_FAULTS + 1
