"""What becomes of functions that lose their worker, without processes to kill.

Tasks are lost and taken in again on paper; functions fail as if their connections had.
"""

import contextlib
import io
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute.coordinator import cluster_coordinator, metric_utils

import tfps
from tests.coordinator.conftest import UNRAISABLE, broken, calling, eventually
from tfps import _tf_resources
from tfps.cluster import reconnecting
from tfps.cluster.members import Task
from tfps.coordinator import recovery

pytestmark = UNRAISABLE
W0, P0 = Task("worker", 0), Task("ps", 0)


@pytest.fixture
def counts():
    """`counts(metric)`: by how much a metric has grown."""
    metric_utils.monitor_int("queued_closures", 0)  # Makes the metrics if there are none yet.

    def get(metric):
        value = metric_utils.get_metric_summary(metric)
        return value["num"] if isinstance(value, dict) else value

    names = ("worker_failures", "server_def_update")
    before = {name: get(name) for name in names}
    return lambda name: get(name) - before[name]


def test_a_function_that_is_put_back_comes_last(make, gate):
    coordinator = make(workers=1)
    ran = []

    def fail_once():
        ran.append("first")
        if len(ran) == 1:
            gate.wait()
            raise broken()
        return np.bool_(True)

    def succeed():
        ran.append("second")
        return np.bool_(True)

    coordinator.schedule(calling(fail_once))
    coordinator.schedule(calling(succeed))
    assert gate.entered.acquire(timeout=10)
    gate.open()
    coordinator.join()
    assert ran == ["first", "second", "first"]
    assert metric_utils.get_metric_summary("queued_closures") == 0
    assert metric_utils.get_metric_summary("inflight_closures") == 0


def test_it_is_cancelled_when_another_has_failed(make, gate, positive):
    coordinator = make(workers=2)
    queue = coordinator._cluster.closure_queue
    assert queue._error is None

    def fail():
        gate.wait()
        raise broken()

    value = coordinator.schedule(calling(fail))
    assert gate.entered.acquire(timeout=10)
    coordinator.schedule(positive, args=(tf.constant(-1),))
    eventually(lambda: queue._error is not None)
    assert isinstance(queue._error, tf.errors.InvalidArgumentError)
    gate.open()
    with pytest.raises(tf.errors.CancelledError, match=r"reschedule.*may have run in part"):
        value.get()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        coordinator.join()
    assert queue._error is None


def test_the_others_run_what_an_idle_lost_worker_was_woken_for(make, by_hand, double):
    coordinator = make(workers=2)
    known = coordinator._queue._members
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    known.lose(W0, "is gone")
    for i in range(4):
        value = coordinator.schedule(double, args=(i,))
        eventually(lambda value=value: value._ready)
        assert value.fetch() == 2 * i
    known.admit(W0, None)


def test_a_lost_worker_is_counted_once(make, by_hand, counts):
    """Two functions were on it, and two are waited for again when it is back."""
    coordinator = make(workers=1)
    coordinator = tfps.ClusterCoordinator(coordinator.strategy, in_flight=2)
    known = coordinator._queue._members
    both, ran = threading.Barrier(2), []

    def lose():
        ran.append(1)
        if len(ran) <= 2:
            both.wait(10)
            known.lose(W0, "is gone")
            raise broken()
        return np.bool_(True)

    values = [coordinator.schedule(calling(lose)) for _ in range(2)]
    eventually(lambda: not coordinator._queue.inflight and known.lost())
    assert counts("worker_failures") == 1
    known.admit(W0, None)
    coordinator._queue._wake()
    assert coordinator.fetch(values) == [True, True]
    coordinator.join()
    ran.clear()
    both.reset()
    values = [coordinator.schedule(calling(lose)) for _ in range(2)]
    eventually(lambda: not coordinator._queue.inflight and known.lost())
    assert counts("worker_failures") == 2
    known.admit(W0, None)
    coordinator.join()


def test_updates_of_the_server_def_are_timed(monkeypatch, counts):
    asked = []
    monkeypatch.setattr(reconnecting._tf_members, "connect", lambda *tasks: asked.append(tasks))
    since = reconnecting._connect(_tf_resources.connection(), without=[P0])
    assert counts("server_def_update") == 0
    reconnecting._connect(since, [(*W0, "10.0.0.3:2222")])
    assert counts("server_def_update") == 1
    assert len(asked) == 2
    # Tasks of one cluster do not join another one.
    with pytest.raises(tfps.ConfigError, match="connected to another cluster"):
        reconnecting._connect((b"another", "chief", "a:1"), [(*W0, "10.0.0.3:2222")])
    assert len(asked) == 2


def test_the_handler_waits_for_a_worker(make, by_hand):
    """As TensorFlow's own tests run a closure on a worker of their choice."""
    coordinator = make(workers=2)
    cluster, known = coordinator._cluster, coordinator._queue._members
    told = []

    def run():
        if not told:
            known.lose(W0, "is gone")
            threading.Timer(0.3, known.admit, (W0, None)).start()
            raise broken()
        twice = tf.function(lambda: 2 * tf.constant(2))
        manager = cluster.closure_queue._cancellation_mgr
        closure = cluster_coordinator.Closure(twice.get_concrete_function(), manager)
        result = closure.build_output_remote_value()
        closure.execute_on(cluster.workers[0])
        told.append(result)

    handler = cluster.workers[0].failure_handler
    assert handler is cluster.failure_handler
    with handler.wait_on_failure(told.append, told.clear, run, "worker 0"):
        run()
    lost, result = told
    assert isinstance(lost, tf.errors.UnavailableError)
    assert result.fetch() == 4
    assert "/job:worker/replica:0/task:0/" in result._values.device


def test_what_the_handler_does_not_wait_for(make, by_hand, monkeypatch):
    coordinator = make(workers=2)
    handler, known = coordinator._cluster.failure_handler, coordinator._queue._members
    told = []
    with handler.wait_on_failure(
        None, lambda: told.append("passed"), worker_device_name="worker 1"
    ):
        raise broken()
    assert told == ["passed"]
    mine = tf.errors.InvalidArgumentError(None, None, "mine")
    for name in ("/job:worker/replica:0/task:1", "(unknown)"):
        with (
            pytest.raises(tf.errors.InvalidArgumentError, match="mine") as caught,
            handler.wait_on_failure(told.append, worker_device_name=name),
        ):
            raise mine
        assert getattr(caught.value, "worker", None) == (None if name == "(unknown)" else 1)

    def lose(task):
        known.lose(task, "is gone")
        raise broken()

    # A worker that is lost again and again is not waited for without a limit.
    monkeypatch.setattr(recovery, "LIMIT", 0.5)
    with (
        pytest.raises(tfps.TaskLost, match=r"worker 0 \(.*\) has not come back within 0.5 s"),
        handler.wait_on_failure(),  # The worker that is lost is the one.
    ):
        lose(W0)
    known.admit(W0, None)
    with (
        pytest.raises(tfps.TaskLost, match=r"ps 0 \(.*\) is gone"),
        handler.wait_on_failure(told.append, worker_device_name="worker 0"),
    ):
        lose(P0)
    known.admit(P0, None)
    assert told == ["passed"]


def test_the_handler_begins_the_recovery(make, monkeypatch, double):
    """But not of a coordinator that was never used: a Trainer on its cluster does so itself."""
    coordinator = make(workers=2)
    queue, handler = coordinator._queue, coordinator._cluster.failure_handler
    begun = threading.Event()
    monkeypatch.setattr(queue._recovery, "begin", begun.set)
    queue._members.lose(W0, "is gone")
    assert not begun.wait(1.5)
    coordinator.schedule(double, args=(1,))
    begun.clear()
    assert begun.wait(5)
    thread = handler._preemption_handler_thread
    assert thread.name == "WorkerPreemptionHandler"
    handler.stop()
    thread.join(1)
    assert not thread.is_alive()
    queue._members.admit(W0, None)
    queue._wake()
    # The coordinator goes on without it.
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    with contextlib.suppress(RuntimeError):
        handler.start()
    assert not thread.is_alive()


def test_the_end_of_the_handler_waits_for_who_joins(make, monkeypatch):
    coordinator = make(workers=1)  # Without it, the handler would end at once.
    handler = coordinator._cluster.failure_handler
    joined = threading.Event()
    monkeypatch.setattr(reconnecting, "_present", reconnecting._Under(joined.wait))
    handler.stop()
    handler._preemption_handler_thread.join(2)
    assert handler._preemption_handler_thread.is_alive()
    joined.set()
    handler._preemption_handler_thread.join(2)
    assert not handler._preemption_handler_thread.is_alive()
    del coordinator


def test_the_cluster_schedules(make, double):
    coordinator = make(workers=1)
    cluster = coordinator._cluster
    value = cluster.schedule(double, args=(2,), kwargs=None)
    cluster.join()
    assert cluster.done()
    assert value.fetch() == 4
    with cluster.closure_queue._queue_lock:  # Whoever holds it may look at everything.
        assert not cluster.closure_queue.inflight_closure_count
    cluster.stop()
    cluster.failure_handler._preemption_handler_thread.join(1)
    assert not cluster.failure_handler._preemption_handler_thread.is_alive()


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_worker_is_lost_where_nobody_can_be_told(make, monkeypatch, error):
    class Closed(io.StringIO):
        def write(self, text):
            raise error("nobody reads")

    monkeypatch.setattr(sys, "stderr", Closed())
    coordinator = make(workers=1)
    known, ran = coordinator._queue._members, []

    def lose():
        ran.append(1)
        if len(ran) == 1:
            known.lose(W0, "is gone")
            raise broken()
        return np.bool_(True)

    value = coordinator.schedule(calling(lose))
    eventually(lambda: not coordinator._queue.inflight and known.lost())
    known.admit(W0, None)
    joined = threading.Thread(target=coordinator.join, daemon=True)
    joined.start()
    joined.join(20)
    assert not joined.is_alive()
    assert value.fetch()


def test_a_loss_that_cannot_be_looked_into_fails_the_function(make, monkeypatch, double):
    """For instance, since the process can start no thread any more."""
    coordinator = make(workers=1)

    def begin():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(coordinator._queue._recovery, "begin", begin)
    value = coordinator.schedule(calling(_raise_broken))
    with pytest.raises(RuntimeError, match="new thread") as caught:
        coordinator.join()
    assert isinstance(caught.value.__cause__, tf.errors.OpError)
    with pytest.raises(RuntimeError, match="new thread"):
        value.fetch()
    assert coordinator.schedule(double, args=(1,)).fetch() == 2


def _raise_broken():
    raise broken()
