"""A chief that was told to end, and its servers, which wait for the next one."""

import contextlib
import signal
import socket
import time

import pytest

import tfps
from tests.cluster.fleet import Fleet
from tfps import _tf_members
from tfps.cluster import greeting, shutdown, sockets
from tfps.cluster.members import Task

WORKER, PS = Task("worker", 0), Task("ps", 0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(143), shutdown.LEAVES),
        (SystemExit(1), "SystemExit: 1"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (None, shutdown.DONE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_sigterm_leaves_servers_to_the_next_chief(error, message, monkeypatch):
    sent = []
    monkeypatch.setattr(shutdown, "send", lambda cluster, message: sent.append(message))
    cluster = tfps.Cluster({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]})
    with contextlib.suppress(BaseException), cluster:
        if error is not None:
            raise error
    assert sent == [message]


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_servers_wait_for_the_next_chief_as_long_as_after_a_death(tmp_path):
    with Fleet(tmp_path, 1, 1, {"TFPS_CHIEF_TIMEOUT": "5"}) as fleet:
        fleet.wait(WORKER, PS)
        address = fleet.cluster.spec["worker"][0]
        before = _tf_members.incarnation(greeting.status(address, 20.0))
        # The chief takes its time to end, so the servers wait for that.
        with socket.create_server(sockets.split(fleet.cluster.spec["chief"][0])):
            fleet.cluster.leave()
            time.sleep(1.0)
            # The whole job is told to end, the chief first: the ps does not start anew.
            fleet.processes[PS].send_signal(signal.SIGTERM)
            assert fleet.processes[PS].wait(20) == 143, fleet.log(PS)
        assert "told to end by SIGTERM" in fleet.log(PS)
        assert "starts anew" not in fleet.log(PS)
        fleet.wait(WORKER)
        while _tf_members.incarnation(greeting.status(address, 1.0)) in (None, before):
            assert fleet.processes[WORKER].poll() is None, fleet.log(WORKER)
            time.sleep(0.05)
        assert fleet.processes[WORKER].wait(60) == 75, fleet.log(WORKER)
        assert "was told to end; this server starts anew, and waits 5 s" in fleet.log(WORKER)
        assert "did not come within 5 s" in fleet.log(WORKER)


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_the_servers_of_a_local_cluster_end_with_its_chief():
    """Nobody else could ever be their chief."""
    cluster = tfps.LocalCluster(workers=1, ps=1, processes=True)
    with pytest.raises(SystemExit), cluster:
        cluster.wait(60)
        begun = time.monotonic()
        raise SystemExit(143)
    assert [p.returncode for p in cluster.ended] == [75, 75]
    assert time.monotonic() - begun < 15
