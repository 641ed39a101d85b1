import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps.cluster import failures, health, members, reconnecting
from tfps.cluster.calls import WorkerCalls
from tfps.cluster.events import Lost, Returned


@pytest.fixture
def dispatcher(connect):
    made = WorkerCalls(connect(workers=2).cluster)
    yield made
    made.drain()
    made.close()


def test_runs_under_the_workers_device(dispatcher):
    devices = dispatcher.run_on_each(lambda w: tf.constant(w).device)
    assert [d.split("/CPU")[0] for d in devices] == [
        f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in (0, 1)
    ]


def test_results_come_as_they_finish(dispatcher):
    release = threading.Event()
    dispatcher.submit(0, lambda: release.wait(10), tag="slow")
    dispatcher.submit(1, lambda: 7, tag="quick")
    done = dispatcher.next()
    assert (done.worker, done.tag, done.value) == (1, "quick", 7)
    release.set()
    assert dispatcher.next().tag == "slow"
    assert dispatcher.pending == 0


def test_errors_of_tensorflow_name_the_worker(dispatcher):
    @tf.function
    def check(x):
        tf.debugging.assert_equal(x, tf.constant(2), "not equal")

    dispatcher.submit(1, lambda: check(tf.constant(1)))
    with pytest.raises(tfps.WorkerError, match=r"worker 1 \(127.0.0.1:\d+\) failed: .*not equal"):
        dispatcher.next()
    assert dispatcher.run_on_each(lambda w: w) == [0, 1]


def test_an_error_of_one_worker_is_not_that_of_another(dispatcher):
    entered, release = threading.Event(), threading.Event()

    def wait():
        entered.set()
        return np.bool_(release.wait(10))

    @tf.function
    def slow():
        return tf.ensure_shape(tf.numpy_function(wait, [], tf.bool), [])

    @tf.function
    def check(x):
        tf.debugging.assert_equal(x, tf.constant(2), "not equal")

    dispatcher.submit(0, lambda: bool(slow()))
    entered.wait(10)
    dispatcher.submit(1, lambda: check(tf.constant(1)))
    with pytest.raises(tfps.WorkerError, match="worker 1"):
        dispatcher.next()
    release.set()
    assert dispatcher.next() == (0, None, True)


def test_other_errors_pass_unchanged(dispatcher):
    dispatcher.submit(0, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        dispatcher.next()


def test_a_lost_worker_is_an_event_and_a_lost_ps_an_error(connect):
    cluster = connect(workers=2).cluster
    known, dispatcher = members.of(cluster), WorkerCalls(cluster)
    release = threading.Event()
    try:
        dispatcher.submit(0, lambda: release.wait(10), tag="its call")
        known.lose(members.Task("worker", 0), "is gone, says a test")
        lost = dispatcher.next(returns=False)
        assert lost == Lost(0, "its call", True, "is gone, says a test")
        assert (dispatcher.living, dispatcher.lives, dispatcher.pending) == ({1}, [1, 0], 0)
        release.set()
        # What the earlier life still returns is the result of nothing.
        assert dispatcher.run_on_each(lambda w: w) == [None, 1]
        known.lose(members.Task("ps", 0), "is gone, too")
        dispatcher.submit(1, lambda: time.sleep(1.0))
        with pytest.raises(tfps.TaskLost, match=r"ps 0 \(.*\) is gone, too"):
            dispatcher.next()
    finally:
        release.set()
        for job in "worker", "ps":
            known.admit(members.Task(job, 0), None)
        dispatcher.drain()
        dispatcher.close()


def test_a_worker_returns_while_the_calls_of_another_leave_no_pause(connect, monkeypatch):
    cluster = connect(workers=2).cluster
    known, dispatcher = members.of(cluster), WorkerCalls(cluster)

    def admitted(known, tasks):
        for task in tasks:
            known.admit(task, None)
        return tasks

    monkeypatch.setattr(reconnecting, "reconnect", admitted)
    try:
        known.lose(members.Task("worker", 1), "is gone, says a test")
        deadline, seen = time.monotonic() + 20, []
        while not any(isinstance(event, Returned) for event in seen):
            assert time.monotonic() < deadline, seen[-1]
            if not dispatcher.pending:
                dispatcher.submit(0, lambda: time.sleep(0.01))
            seen.append(dispatcher.next())
        assert seen[-1] == Returned(1) and dispatcher.living == {0, 1}
    finally:
        known.admit(members.Task("worker", 1), None)
        dispatcher.drain()
        dispatcher.close()


def test_a_slow_step_is_no_lost_server(dispatcher, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    dispatcher.submit(0, lambda: time.sleep(0.3))
    dispatcher.next()


def test_a_step_that_never_ends_is_named(connect, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    dispatcher = WorkerCalls(connect(workers=2).cluster, limit=0.3)
    release = threading.Event()
    dispatcher.submit(0, lambda: None)
    dispatcher.submit(1, lambda: release.wait(10))
    dispatcher.next()
    with pytest.raises(tfps.StepTimeout, match=r"worker 1 \(.*\) answers, but .* step_timeout"):
        dispatcher.next()
    release.set()
    dispatcher.drain()
    dispatcher.close()


def test_who_is_gone_is_found_though_it_dies_slowly(connect, monkeypatch):
    """A server that is being killed may accept connections after its calls have failed."""
    cluster = connect(workers=2).cluster
    asked = []

    def answers(address, timeout):
        asked.append(address)
        return asked.count(address) < 3 or address != cluster.spec["ps"][0]

    monkeypatch.setattr(failures.sockets, "answers", answers)
    reset = tf.errors.UnavailableError(None, None, "recvmsg:Connection reset by peer")
    with pytest.raises(tfps.TaskLost, match=r"ps 0 .* no longer answers"):
        failures.require_alive(cluster, reset)
    asked.clear()
    failures.require_alive(cluster, tf.errors.InvalidArgumentError(None, None, "of the model"))
    assert len(asked) == len(cluster.servers)


def test_a_step_that_never_ends_is_named_while_others_go_on(connect, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 0.1)
    dispatcher = WorkerCalls(connect(workers=2).cluster, limit=0.5)
    release = threading.Event()
    dispatcher.submit(0, lambda: release.wait(10))
    with pytest.raises(tfps.StepTimeout, match="worker 0"):
        for _ in range(100):
            dispatcher.submit(1, lambda: time.sleep(0.05))
            dispatcher.next()
    release.set()
    begun = time.monotonic()
    dispatcher.drain()
    assert time.monotonic() - begun < 5  # It knows how many calls are under way.
    dispatcher.close()


def test_what_drain_gave_up_on_ends_before_anything_new(dispatcher, monkeypatch):
    monkeypatch.setattr(health, "DRAIN", 0.05)
    release, ended = threading.Event(), []
    dispatcher.submit(0, lambda: ended.append(release.wait(10)))
    dispatcher.drain()
    assert dispatcher.pending == 0
    threading.Timer(0.2, release.set).start()
    dispatcher.settle()
    assert ended == [True]


def test_workers_that_are_busy_are_not_asked(dispatcher):
    release = threading.Event()
    dispatcher.submit(0, lambda: release.wait(10), tag="busy")
    with pytest.raises(tfps.ConfigError, match="in the middle of a step"):
        dispatcher.run_on_each(lambda w: w)
    release.set()
    assert dispatcher.next().tag == "busy"


def test_what_the_chief_asks_has_a_limit(connect, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    dispatcher = WorkerCalls(connect(workers=2).cluster, limit=0.3)
    release = threading.Event()
    with pytest.raises(
        tfps.StepTimeout, match=r"has not answered the chief.* step_timeout above 0\.3"
    ):
        dispatcher.ask(lambda: release.wait(10))
    assert dispatcher.ask(lambda: 3) == 3  # What hangs is left behind.
    release.set()
    dispatcher.close()


def test_what_the_chief_asks_of_a_lost_server_is_named(dispatcher, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    monkeypatch.setattr(failures.sockets, "answers", lambda address, timeout: False)
    release = threading.Event()
    with pytest.raises(tfps.TaskLost, match="no longer answer"):
        dispatcher.ask(lambda: release.wait(10))
    release.set()


def test_what_the_chief_asks_may_fail(dispatcher):
    with pytest.raises(ZeroDivisionError):
        dispatcher.ask(lambda: 1 // 0)
