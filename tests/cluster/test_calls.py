import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps import exit_codes
from tfps.cluster import failures, greeting, health, members, reconnecting, sockets
from tfps.cluster.asking import Asker
from tfps.cluster.calls import WorkerCalls
from tfps.cluster.events import Completion, Lost, Returned


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


def test_a_worker_that_was_taken_in_late_returns(connect):
    """Nobody waited for the change of TensorFlow's context any more when it succeeded."""
    cluster = connect(workers=2).cluster
    known, dispatcher = members.of(cluster), WorkerCalls(cluster)
    worker = members.Task("worker", 0)
    try:
        known.lose(worker, "is gone, says a test")
        dispatcher.submit(1, lambda: time.sleep(2.0))
        assert dispatcher.next(returns=False) == Lost(0, None, False, "is gone, says a test")
        known.admit(worker, None)
        assert dispatcher.next() == Returned(0)
        assert dispatcher.living == {0, 1}
        # What was known of the return is of no use after another loss.
        known.lose(worker, "is gone again")
        assert dispatcher.next(returns=False) == Lost(0, None, False, "is gone again")
        dispatcher._admissions._arrived.append(0)
        assert dispatcher.next().worker == 1
        assert dispatcher.living == {1}
    finally:
        known.admit(worker, None)
        dispatcher.drain()
        dispatcher.close()


def fail():
    raise tf.errors.UnavailableError(None, None, "Socket closed")


def in_doubt(dispatcher, worker):
    """Has a call fail as calls fail when a task is lost."""
    dispatcher.submit(worker, fail, tag="in doubt")
    dispatcher._end(*dispatcher._done.get(timeout=10), returns=True)
    assert worker in dispatcher._doubts


@pytest.mark.parametrize("job", ["worker", "ps"])
def test_a_doubt_lasts_while_its_worker_or_a_ps_is_silent(connect, monkeypatch, job):
    cluster = connect(workers=2).cluster
    known, dispatcher = members.of(cluster), WorkerCalls(cluster)
    worker, silent = members.Task("worker", 0), members.Task(job, 0)
    greet = greeting.greet

    def greeted(address, timeout):
        if address == cluster.spec[job][0]:
            return greeting.Answer.SILENT
        return greet(address, timeout)

    monkeypatch.setattr(members.greeting, "greet", greeted)
    try:
        in_doubt(dispatcher, 0)
        deadline = time.monotonic() + 10
        while silent not in known.silent():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        dispatcher._doubts[0] = dispatcher._doubts[0]._replace(since=0.0)
        dispatcher._look(returns=True)
        assert dispatcher.pending == 1
        known.lose(worker, "is gone, says a test")
        assert dispatcher.next() == Lost(0, "in doubt", True, "is gone, says a test")
    finally:
        known.admit(worker, None)
        dispatcher.drain()
        dispatcher.close()


def test_a_doubt_ends_when_all_answer(dispatcher):
    in_doubt(dispatcher, 0)
    dispatcher._doubts[0] = dispatcher._doubts[0]._replace(since=0.0)
    with pytest.raises(tfps.WorkerError, match=r"worker 0 \(.*\) failed: Socket closed"):
        dispatcher.next()


def test_calls_that_have_failed_are_not_waited_for(dispatcher):
    in_doubt(dispatcher, 0)
    begun = time.monotonic()
    dispatcher.drain()
    assert time.monotonic() - begun < 1.0
    assert dispatcher.pending == 0 and not dispatcher._strays


def test_an_error_that_nobody_waited_for_ends_nothing_later(dispatcher):
    """A loop of a ps fails while no worker is in a call: in a hook, for example."""
    dispatcher.interrupt(tf.errors.UnavailableError(None, None, "Connection reset by peer"))
    dispatcher.drain()
    assert dispatcher.run_on_each(lambda w: w) == [0, 1]


def test_a_loss_that_a_broken_run_has_left_says_nothing_of_its_batches(dispatcher):
    known = members.of(dispatcher._cluster)
    release = threading.Event()
    try:
        dispatcher.submit(0, lambda: release.wait(10), tag=(3, "some work"))
        known.lose(members.Task("worker", 0), "is gone, says a test")
        dispatcher._look(returns=False)
        dispatcher.drain()
        assert dispatcher.events == [Lost(0, None, False, "is gone, says a test")]
    finally:
        release.set()
        known.admit(members.Task("worker", 0), None)


def test_who_is_told_to_end_waits_for_nobody(dispatcher):
    known = members.of(dispatcher._cluster)
    dispatcher.is_leaving = lambda: True
    try:
        for job in "worker", "ps":
            known.lose(members.Task(job, 0), "is gone, says a test")
        with pytest.raises(SystemExit, match="143"):
            dispatcher.await_servers()
        known.admit(members.Task("ps", 0), None)
        known.lose(members.Task("worker", 1), "is gone, too")
        with pytest.raises(SystemExit, match="143"):
            while True:
                dispatcher.next(returns=False)
    finally:
        for task in known.lost():
            known.admit(task, None)
        exit_codes._noted.clear()


def test_a_silent_ps_is_waited_for(dispatcher, monkeypatch):
    ps = members.Task("ps", 1)
    watch = members.of(dispatcher._cluster)._watches[ps]
    watch.failures = 1
    began = time.monotonic()
    threading.Timer(0.6, lambda: setattr(watch, "failures", 0)).start()
    monkeypatch.setattr(members.Members, "attend", lambda self: None)
    assert dispatcher.servers.outlast_silence() == {1}
    assert 0.5 < time.monotonic() - began < 10.0
    assert dispatcher.servers.outlast_silence() == frozenset()


def test_a_worker_that_was_frozen_meanwhile_is_noticed(dispatcher, monkeypatch):
    known, task = members.of(dispatcher._cluster), members.Task("worker", 1)
    known._watches[task].failures = 1
    monkeypatch.setattr(members.Members, "attend", lambda self: None)
    monkeypatch.setattr(members.Members, "suspect", lambda self, *tasks: None)
    threading.Timer(0.6, lambda: known.lose(task, "does not answer, says a test")).start()
    try:
        dispatcher.notice()
        assert dispatcher.living == {0}
    finally:
        known._watches[task].failures = 0
        known.admit(task, None)


def test_a_lost_worker_is_given_nothing(dispatcher):
    known, worker = members.of(dispatcher._cluster), members.Task("worker", 1)
    known.lose(worker, "is gone, says a test")
    assert dispatcher.run_on_each(lambda w: w) in ([0, 1], [0, None])
    assert dispatcher.next(returns=False).worker == 1
    with pytest.raises(AssertionError):
        dispatcher.submit(1, lambda: None)
    assert dispatcher.pending == 0
    assert dispatcher.run_on_each(lambda w: w) == [0, None]
    known.admit(worker, None)


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


def test_a_worker_that_somebody_else_has_taken_in_has_a_new_life(connect):
    """Its process is another one, although nobody here has seen the loss."""
    cluster = connect(workers=2).cluster
    dispatcher = WorkerCalls(cluster, limit=60.0)
    dispatcher.submit(0, lambda: time.sleep(1.5))
    dispatcher.submit(1, lambda: time.sleep(5.0))
    members.of(cluster).admit(members.Task("worker", 1), None)
    lost = dispatcher.next()
    assert isinstance(lost, Lost) and (lost.worker, lost.why) == (1, "was started anew")
    assert dispatcher.lives == [0, 1]
    found = [dispatcher.next(), dispatcher.next()]
    assert {type(one) for one in found} == {Completion, Returned}
    dispatcher.submit(1, lambda: 7)
    assert dispatcher.next().value == 7
    assert dispatcher.lives == [0, 1]
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
    assert set(asked) == set(cluster.spec["ps"])


@pytest.fixture
def without_worker_1(connect):
    """A cluster whose second worker does not answer."""
    cluster = connect(workers=2).cluster
    cluster.spec["worker"][1] = f"127.0.0.1:{sockets.free_ports(1)[0]}"
    return cluster


def test_what_the_chief_asks_is_not_disturbed_by_a_lost_worker(without_worker_1, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 0.1)
    ask = Asker(without_worker_1, limit=60.0)
    assert ask(lambda: time.sleep(0.5) or 7) == 7
    ask.require_alive()  # As whoever waits for a snapshot's files does.
    with pytest.raises(tfps.TaskLost, match=r"worker 1 \(.*\) no longer answers"):
        ask(lambda: time.sleep(5.0), workers=[1])
    ask.close()


def test_an_error_of_one_worker_is_not_the_loss_of_another(without_worker_1):
    own = tf.errors.InvalidArgumentError(None, None, "of the model")
    found = failures.named(without_worker_1, own, 0)
    assert isinstance(found, tfps.WorkerError) and found.worker == 0
    reset = tf.errors.UnavailableError(None, None, "recvmsg:Connection reset by peer")
    assert isinstance(failures.named(without_worker_1, reset, 1), tfps.TaskLost)
    # Whom the chief itself could not reach, its error does not say.
    assert isinstance(failures.named(without_worker_1, reset), tfps.TaskLost)
    assert not isinstance(failures.named(without_worker_1, own), tfps.TaskLost)


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
