"""Sockets: is a port free, does an address answer. Nothing of TensorFlow."""

import socket
import time

from tfps import errors


def split(address: str) -> tuple[str, int]:
    """`"host:port"` or `"[v6]:port"` as (host, port).

    Raises:
      ClusterConfigError: no port, or one outside 1 to 65535.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise errors.ClusterConfigError(
            f"address {address!r} is not host:port with a port from 1 to 65535"
        )
    return host.strip("[]"), int(port)


def free_ports(count: int) -> list[int]:
    """`count` different ports that were free on 127.0.0.1 a moment ago."""
    sockets = []
    for _ in range(count):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sockets.append(sock)
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def require_free(address: str, owner: str) -> None:
    """Raises `PortInUse` if something listens on the address's port here.

    gRPC binds with SO_REUSEPORT, so two servers would share a port silently,
    each getting some of the connections; hence this check before the bind.
    """
    _, port = split(address)
    with socket.socket() as sock:
        # Allows ports in TIME_WAIT, as gRPC does; a listener still refuses us.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
        except OSError as e:
            raise errors.PortInUse(
                f"{owner} cannot listen on {address}: {e.strerror.lower()}; stop the process that "
                "holds the port or give the task another one"
            ) from e


def answers(address: str, timeout: float) -> bool:
    """Whether something accepts a TCP connection at the address in `timeout` s."""
    try:
        socket.create_connection(split(address), timeout=timeout).close()
    except OSError:
        return False
    return True


def wait_for(tasks: dict[str, str], timeout: float, on_wait=None) -> None:
    """Waits until every task accepts connections.

    Args:
      tasks: name of the task (`"worker 0"`) -> its address.
      timeout: seconds, for all of them together.
      on_wait: called about every 10 s with the tasks still missing.

    Raises:
      StartupTimeout: names the tasks that did not answer and their addresses.
    """
    deadline = time.monotonic() + timeout
    next_report = time.monotonic() + 10
    missing = dict(tasks)
    while True:
        for name, address in list(missing.items()):
            remaining = deadline - time.monotonic()
            if answers(address, timeout=max(0.2, min(2.0, remaining))):
                del missing[name]
            elif time.monotonic() > deadline:
                break
        if not missing:
            return
        if time.monotonic() > deadline:
            listed = ", ".join(f"{name} at {address}" for name, address in missing.items())
            raise errors.StartupTimeout(
                f"no answer within {timeout:g} s from {listed}; start the missing tasks, check the "
                "addresses in TF_CONFIG, or wait longer (--startup_timeout)"
            )
        if on_wait and time.monotonic() > next_report:
            on_wait(missing)
            next_report = time.monotonic() + 10
        time.sleep(0.2)
