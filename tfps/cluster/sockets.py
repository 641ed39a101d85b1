"""Whether a port is free, and whether an address answers. Nothing here needs TensorFlow."""

import socket
import time
from collections.abc import Callable

from tfps import errors


def split(address: str) -> tuple[str, int]:
    """Returns (host, port) of `"host:port"` or `"[v6]:port"`.

    Raises:
      ClusterConfigError: there is no port, or the port is not from 1 to 65535.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise errors.ClusterConfigError(
            f"address {address!r} is not host:port with a port from 1 to 65535"
        )
    return host.strip("[]"), int(port)


def free_ports(count: int) -> list[int]:
    """Returns `count` different ports that were free on 127.0.0.1 a moment ago."""
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
    """Checks that nothing listens on the address's port on this machine.

    gRPC binds with SO_REUSEPORT. Two servers would therefore share a port silently, and each would
    get some of the connections.

    Args:
      address: `host:port`.
      owner: name of the task that wants the port, for the error.

    Raises:
      PortInUse: something listens on the port.
    """
    _, port = split(address)
    with socket.socket() as sock:
        # A port in TIME_WAIT counts as free, as it does for gRPC; one with a listener does not.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
        except OSError as e:
            raise errors.PortInUse(
                f"{owner} cannot listen on {address}: {(e.strerror or str(e)).lower()}; stop the "
                "process that holds the port or give the task another one"
            ) from e


def answers(address: str, timeout: float) -> bool:
    """Returns whether something accepts a TCP connection at the address within `timeout` s."""
    try:
        socket.create_connection(split(address), timeout=timeout).close()
    except OSError:
        return False
    return True


def wait_for(
    tasks: dict[str, str],
    timeout: float,
    on_wait: Callable[[dict[str, str]], None] = lambda missing: None,
) -> None:
    """Waits until every task accepts connections.

    Args:
      tasks: name of a task (`"worker 0"`) -> its address.
      timeout: seconds to wait for all tasks together.
      on_wait: called about every 10 s with the tasks that are still missing.

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
        if time.monotonic() > next_report:
            on_wait(missing)
            next_report = time.monotonic() + 10
        time.sleep(0.2)
