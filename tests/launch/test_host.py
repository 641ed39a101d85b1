"""A connection to a real agent on this machine."""

import queue
import signal
import sys

import pytest

from launch import errors
from launch.host import Host
from launch.launcher import Exited, HostLost
from launch.machine import Machine

pytestmark = pytest.mark.processes


@pytest.fixture
def events():
    return queue.Queue()


@pytest.fixture
def host(tmp_path, events):
    made = Host(Machine("a", "127.0.0.1", sys.executable, str(tmp_path), remote=False), events)
    made.connect()
    yield made
    made.close(deadline=0.0)


def start(host, task="worker 0", seconds="60"):
    folder = host.machine.folder
    host.ask("start", task=task, argv=["sleep", seconds], folder=folder, environ={}, cores=[])


def test_a_task_is_started_once(host, events):
    start(host)
    start(host)  # As if the first answer had been late.
    with pytest.raises(errors.HostError, match="worker 0 runs already"):
        start(host, seconds="61")
    host.tell("signal", task="worker 0", signum=int(signal.SIGKILL))
    assert events.get(timeout=10) == Exited("worker 0", -9)
    start(host)  # It has ended, so this is another life.
    host.tell("signal", task="worker 0", signum=int(signal.SIGKILL))
    assert events.get(timeout=10) == Exited("worker 0", -9)
    assert events.empty()


def test_a_loss_says_of_which_connection_it_is(host, events):
    assert host.connection == 1
    host.lose("it is silent, says a test")
    host.connect()
    assert host.connection == 2
    start(host)
    lost = events.get(timeout=10)
    assert isinstance(lost, HostLost) and (lost.host, lost.connection) == ("a", 1)
    assert host.lost is None


def test_what_comes_from_a_connection_that_was_given_up_is_dropped(host, events):
    """The end of a task of the earlier connection is not that of its successor."""
    start(host, seconds="0.5")
    process, host.lost = host._process, "it is silent, says a test"
    with pytest.raises(queue.Empty):
        events.get(timeout=1.5)
    process.kill()
    host.connect()
    start(host)
    with pytest.raises(queue.Empty):
        events.get(timeout=0.5)
    assert host.lost is None


def test_a_task_that_has_just_been_started_heeds_what_it_is_told(host, events):
    for i in range(20):
        start(host, task=f"worker {i}")
        host.tell("signal", task=f"worker {i}", signum=int(signal.SIGTERM))
    ended = [events.get(timeout=10) for _ in range(20)]
    assert {event.status for event in ended} == {-15}
