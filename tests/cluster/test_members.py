"""Who lives and who returns: real processes are killed and frozen amid calls on others."""

import re
import threading
import time
from typing import ClassVar

import pytest
import tensorflow as tf

import tfps
from tests.cluster.fleet import Fleet
from tfps import _tf
from tfps.cluster import members, reconnecting
from tfps.cluster.members import Task

pytestmark = pytest.mark.processes

W0, W1, P0, P1 = Task("worker", 0), Task("worker", 1), Task("ps", 0), Task("ps", 1)


class Calls:
    """Calls functions on a task over and over while it is not lost, and counts.

    Nobody may call a task while it joins: it is sent its functions one by one, and ends with a
    segmentation fault if one is called whose loop's body has not come yet.

    Attributes:
      made: all that were made and may still call.
    """

    made: ClassVar[list] = []

    def __init__(self, known, task, function):
        self.done, self.errors, self._over = 0, [], False
        self._known, self._task = known, task
        self._device = f"/job:{task.job}/replica:0/task:{task.index}"
        self._function = function
        self.made.append(self)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with tf.device(self._device), _tf.own_executor() as executor:
            while not self._over:
                if self._task in self._known.lost():
                    time.sleep(0.01)
                    continue
                try:
                    self._function()
                    self.done += 1
                except tf.errors.OpError as e:
                    self.errors.append(e)
                    executor.clear_error()
                    time.sleep(0.05)

    def go_on(self, count=3, timeout=20.0):
        """Waits until `count` calls more were made."""
        until, deadline = self.done + count, time.monotonic() + timeout
        while self.done < until:
            assert time.monotonic() < deadline, self.errors[-1:]
            time.sleep(0.01)

    def end(self):
        self._over = True


def take_in(known, task, timeout=30.0):
    """Reconnects a task; as long as another one is slow to answer, nothing is done."""
    deadline = time.monotonic() + timeout
    while not (found := reconnecting.reconnect(known)):
        assert time.monotonic() < deadline, (known.lost(), known.silent())
    assert found == {task}


@pytest.fixture
def fleet(tmp_path):
    with Fleet(tmp_path, 2, 2) as started:
        started.wait(W0, W1, P0, P1)
        yield started
        # Whoever still calls while another test connects would crash the process.
        while Calls.made:
            Calls.made.pop().end()


def until_returned(known, task, timeout=30.0):
    deadline = time.monotonic() + timeout
    while task not in known.returned():
        assert time.monotonic() < deadline
        known.wait_returned(0.1)
        time.sleep(0.01)


@pytest.mark.timeout(240)
@pytest.mark.timed
def test_others_go_on_while_tasks_are_lost_and_return(fleet, connect):
    strategy = tfps.ParameterServerStrategy(fleet.cluster)
    known = members.of(fleet.cluster)
    with strategy.scope():
        kept, lost = tf.Variable(1.0), tf.Variable(2.0)  # On ps 0 and on ps 1.
    with tf.device("/job:ps/task:0"):
        stop, rounds = tf.Variable(False), tf.Variable(0)

    @tf.function
    def loop():
        while not stop:
            rounds.assign_add(1)
        return rounds.read_value()

    @tf.function
    def step():
        for _ in tf.range(20):
            kept.assign_add(1.0)

    of_ps, others, own = (Calls(known, *call) for call in ((P0, loop), (W1, step), (W0, step)))
    others.go_on()
    own.go_on()

    # A worker dies, and is started again.
    fleet.kill(W0)
    begun = time.monotonic()
    known.suspect(W0)
    assert known.wait_lost(5.0) == {W0}
    assert time.monotonic() - begun < 2.0
    assert "no process listens" in known.loss(W0).why
    others.go_on()
    assert reconnecting.reconnect(known) == frozenset()
    fleet.start(W0)
    until_returned(known, W0)
    take_in(known, W0)
    assert known.lost() == frozenset()
    own.go_on()
    others.go_on()

    # It is started again at once, before or just after somebody notices.
    fleet.restart(W0)
    known.suspect(W0)
    assert known.settle() == {W0}
    assert re.search("another process|no process listens", known.loss(W0).why)
    take_in(known, W0)
    own.go_on()

    # While the other worker is frozen, nothing is changed; when it is lost, it is left out.
    fleet.freeze(W1)
    begun = time.monotonic()
    fleet.kill(W0)
    fleet.start(W0)
    fleet.wait(W0)
    known.suspect(W0)
    assert known.wait_lost(20.0)
    while known.lost() != {W0, W1}:
        known.wait_lost(1.0, known.lost())
        assert time.monotonic() - begun < 15.0
    until_returned(known, W0)
    begun = time.monotonic()
    take_in(known, W0)
    assert time.monotonic() - begun < 10.0
    own.go_on()
    assert others.errors  # Its call failed although nobody answered.

    # A parameter server comes back: its variables are gone, those of the other are there.
    fleet.restart(P1)
    known.suspect()
    assert P1 in known.settle()
    assert P1 in reconnecting.reconnect(known)
    with pytest.raises(tf.errors.OpError):
        lost.numpy()
    with tf.device("/job:ps/task:1"):
        assert tf.Variable(5.0).numpy() == 5.0
    before = kept.numpy()
    own.go_on()
    assert kept.numpy() > before

    # Nobody has disturbed the loop that was called before all of this.
    assert of_ps.done == 0
    assert not of_ps.errors
    stop.assign(True)
    of_ps.go_on(1)
    for calls in (of_ps, others, own):
        calls.end()

    # What this process has made on its own device goes on after its next connection.
    mine = tf.Variable(1.0)
    connect(workers=1)
    mine.assign(2.0)
    assert mine.numpy() == 2.0


@pytest.mark.timeout(120)
def test_a_frozen_parameter_server_keeps_its_memory(fleet):
    strategy = tfps.ParameterServerStrategy(fleet.cluster)
    known = members.of(fleet.cluster)
    with strategy.scope():
        variable = tf.Variable(3.0)
    fleet.freeze(P0)
    fleet.restart(W0)
    known.suspect()
    deadline = time.monotonic() + 20.0
    while P0 not in known.silent():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # A change of the context would cost it its variables.
    assert reconnecting.reconnect(known) == frozenset()
    assert known.lost() == {W0}
    fleet.thaw(P0)
    while P0 in known.silent():
        known.attend()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    take_in(known, W0)
    assert variable.numpy() == 3.0


def test_nobody_is_asked_unattended(monkeypatch):
    asked = set()  # Those of other tests as well, which may still be asked.

    def greet(address, timeout):
        asked.add(address)
        return members.Answer.SILENT

    monkeypatch.setattr(members.greeting, "greet", greet)
    cluster = tfps.Cluster({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]})
    known = members.Members(cluster)
    assert known.lost() == frozenset()
    time.sleep(0.1)
    assert not known.attended
    assert not asked & {"b:1", "c:1"}
    known.attend()
    deadline = time.monotonic() + 10.0
    while not asked >= {"b:1", "c:1"}:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nobody_sees_a_returned_task_in_the_life_before():
    """Readers take no lock; `admit` here pauses after each of its writes to read."""
    known = members.Members(tfps.Cluster({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}))
    watch, seen = known._watches[W0], []

    class Read(type(watch)):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            seen.append((known.loss(W0) is None, known.life(W0), self.incarnation))

    known.lose(W0, "is gone")
    watch.__class__ = Read
    known.admit(W0, 7)
    assert seen[-1] == (True, 1, 7)
    assert {read for read in seen if read[0]} == {(True, 1, 7)}


@pytest.mark.parametrize("moment", ["loss", "life"])
def test_a_life_is_over_however_soon_the_next_one_begins(moment, monkeypatch):
    """The task is taken in again between the questions that `end_of` asks, or after them."""
    known = members.Members(tfps.Cluster({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}))
    ask = getattr(known, moment)

    def asked(task):
        answer = ask(task)
        known.admit(task, 7)
        return answer

    assert known.end_of(W0, 0) is None
    known.lose(W0, "is gone")
    monkeypatch.setattr(known, moment, asked)
    assert known.end_of(W0, 0) == "is gone"
    assert known.end_of(W0, 0) is not None


@pytest.fixture
def answers(monkeypatch):
    """Address -> what a server there answers, and the incarnation that it says; by hand."""
    said = {"b:1": (members.Answer.ANSWERS, 7), "c:1": (members.Answer.ANSWERS, 9)}

    def greet(address, timeout):
        return said.get(address, (members.Answer.SILENT, None))[0]

    monkeypatch.setattr(members.greeting, "greet", greet)
    monkeypatch.setattr(members.greeting, "status", lambda address, timeout: said[address][1])
    monkeypatch.setattr(members._tf_members, "incarnation", lambda status: status)
    monkeypatch.setattr(members._tf_members, "incarnations", lambda: {W0: 7, P0: 9})
    return said


def test_who_was_lost_before_it_ever_answered_is_known_when_it_returns(answers):
    known = members.Members(tfps.Cluster({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}))
    answers["b:1"] = members.Answer.GONE, None
    assert known.wait_lost(5.0) == {W0}
    answers["b:1"] = members.Answer.ANSWERS, 8
    begun = time.monotonic()
    assert known.wait_returned(2.9) == {W0}
    assert time.monotonic() - begun < 2.9  # It need not have answered for 3 s.
    known.admit(W0, 8)


@pytest.mark.parametrize("question", ["greet", "status"])
def test_an_answer_from_before_a_suspicion_does_not_settle_it(answers, monkeypatch, question):
    """The server is started anew once it has answered a question, and a call on it fails."""
    known = members.Members(tfps.Cluster({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}))
    ask, armed, asked = getattr(members.greeting, question), threading.Event(), threading.Event()

    def late(address, timeout):
        answer = ask(address, timeout)
        its_own = threading.current_thread() is known._watches[W0]._thread
        if its_own and armed.is_set() and not asked.is_set():
            answers["b:1"] = members.Answer.ANSWERS, 8
            known.suspect(W0)
            asked.set()
        return answer

    monkeypatch.setattr(members.greeting, question, late)
    known.suspect(W0)
    assert known.settle(W0) == frozenset()
    armed.set()
    if question == "status":
        known.suspect(W0)
    assert asked.wait(5)
    assert known.settle(W0) == {W0}
    known.admit(W0, 8)
