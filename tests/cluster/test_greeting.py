"""Whether a server lives: asked of processes that freeze and die, and of what is no server."""

import socket
import threading

import pytest

from tests.cluster.fleet import Fleet
from tfps import _tf_members
from tfps.cluster import connections, greeting, sockets
from tfps.cluster.greeting import Answer
from tfps.cluster.members import Task

WORKER = Task("worker", 0)


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_a_frozen_server_is_silent_and_a_dead_one_gone(tmp_path):
    with Fleet(tmp_path, 1, 1) as fleet:
        fleet.wait(WORKER)
        address = fleet.cluster.spec["worker"][0]
        life = _tf_members.incarnation(greeting.status(address, 10.0))
        assert life is not None
        assert life == _tf_members.incarnation(greeting.status(address, 10.0))
        fleet.freeze(WORKER)
        assert sockets.answers(address, 1.0)  # The kernel accepts the connection.
        assert greeting.greet(address, 0.5) is Answer.SILENT
        assert greeting.status(address, 0.5) is None
        fleet.thaw(WORKER)
        assert greeting.greet(address, 10.0) is Answer.ANSWERS
        fleet.kill(WORKER)
        assert greeting.greet(address, 10.0) is Answer.GONE
        fleet.start(WORKER)
        fleet.wait(WORKER)
        assert _tf_members.incarnation(greeting.status(address, 10.0)) not in (None, life)


def test_what_is_no_grpc_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert greeting.greet(address, 0.2) is Answer.SILENT

        def hang_up():
            connection, _ = listener.accept()  # The one of before.
            connection.close()
            connection, _ = listener.accept()
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        assert greeting.greet(address, 10.0) is Answer.GONE
    assert greeting.greet("no.such.host.invalid:1", 0.5) is Answer.SILENT


def test_no_status():
    assert _tf_members.incarnation(None) is None
    assert _tf_members.incarnation(b"") is None


def test_connections_are_cut():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with socket.create_connection(sockets.split(address), timeout=10) as connection:
            accepted, _ = listener.accept()
            with accepted:
                assert connections.cut(address) == 1
                assert connection.recv(1) == b""
                assert accepted.recv(1) == b""
    assert connections.cut(address) == 0


def test_connections_of_ipv6_sockets_are_cut():
    """As gRPC makes them, also for addresses of IPv4."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET6) as connection,
    ):
        port = listener.getsockname()[1]
        connection.settimeout(10)
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        connection.connect(("::ffff:127.0.0.1", port))
        assert connections.cut(f"127.0.0.1:{port}") == 1
        assert connection.recv(1) == b""
