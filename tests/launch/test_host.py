"""A connection to a real agent on this machine."""

import os
import queue
import signal
import sys

import pytest

from launch import errors, hosts, topology
from launch.host import Host
from launch.launcher import Exited, HostLost, Line, Told
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


def test_an_agent_that_is_told_to_end_leaves_that_to_the_launcher(host, events):
    """Slurm tells every node of a job that is cancelled, and the chief should end first."""
    start(host)
    os.kill(host._process.pid, signal.SIGTERM)
    assert events.get(timeout=10) == Told("a", signal.SIGTERM)
    with pytest.raises(queue.Empty):
        events.get(timeout=1)
    host.tell("stop", grace=5.0)
    assert events.get(timeout=10) == Exited("worker 0", -15)


SERVES = """
import json, os, signal, socket, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
address = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][0]
server = socket.create_server(("", int(address.rpartition(":")[2])))
print("serves", flush=True)
time.sleep(60)
"""


@pytest.mark.timeout(60)
def test_ports_are_waited_for_whose_tasks_end_with_a_lost_connection(tmp_path):
    """The agent at the other end has to notice the loss, and gives its tasks a few seconds."""
    line = ("sh", "-c", '"$@"; exit', "sh")  # As ssh, it may be killed while the agent lives.
    machine = Machine("a", "127.0.0.1", sys.executable, str(tmp_path), line)
    launcher = hosts.HostsLauncher([machine], ["python", "-c", SERVES])
    try:
        (task,) = (made := launcher.check(topology.roles(1, 0))).tasks
        for life in (1, 2):
            launcher.start(task, made.environ(task))
            assert launcher.watch(20) == Line("worker 0", "serves")
            if life == 1:
                launcher._hosts["a"].lose("it is silent, says a test")
                assert isinstance(launcher.watch(10), HostLost)
    finally:
        launcher.close()
