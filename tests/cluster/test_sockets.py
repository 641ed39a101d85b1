import socket

import pytest

import tfps
from tfps.cluster import sockets


@pytest.fixture
def listener():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def test_free_ports_are_free_and_different():
    ports = sockets.free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        sockets.require_free(f"127.0.0.1:{port}", "worker 0")


def test_taken_port_is_refused(listener):
    with pytest.raises(tfps.PortInUse, match=f"ps 1 cannot listen on {listener}"):
        sockets.require_free(listener, "ps 1")


def test_wait_names_the_missing(listener):
    silent = f"127.0.0.1:{sockets.free_ports(1)[0]}"
    sockets.wait_for({"worker 0": listener}, timeout=5)
    with pytest.raises(tfps.StartupTimeout) as caught:
        sockets.wait_for({"worker 0": listener, "ps 0": silent}, timeout=0.5)
    assert f"ps 0 at {silent}" in str(caught.value)
    assert "worker 0" not in str(caught.value)


def test_addresses():
    assert sockets.split("[::1]:80") == ("::1", 80)
    with pytest.raises(tfps.ClusterConfigError):
        sockets.split("host:0")
