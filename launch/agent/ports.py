"""Ports that are chosen for tasks, and kept for them; and whether others get through to them."""

from __future__ import annotations

import socket
import threading
from typing import Any


def keep_port(port: int) -> socket.socket:
    """Returns a socket that holds a port without listening.

    Nobody gets the port by asking for any free one, but a task can listen on it, if it sets
    SO_REUSEADDR or SO_REUSEPORT as servers do (gRPC sets both).

    Args:
      port: its number; 0 for a free one.

    Raises:
      OSError: something listens there.
    """
    if port:
        with socket.socket() as trial:  # This fails where somebody listens, whatever his options.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("", port))
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("", port))  # Linux shares no port that is asked for by 0, whatever the options.
    return held


def listen(port: int) -> socket.socket:
    """Returns a socket that listens on a kept port, to try whether others get through to it.

    The kernel completes connections by itself; nobody has to accept them.
    """
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", port),
        family=socket.AF_INET6 if both else socket.AF_INET,
        backlog=1024,
        reuse_port=True,
        dualstack_ipv6=both,
    )


def unreachable(addresses: list[tuple[str, int]], timeout: float = 4.0) -> list[list[Any]]:
    """Returns [address, port, why] of each address to which no connection is made in time.

    Args:
      addresses: pairs of a name or address, and a port.
      timeout: seconds for all of them, which are tried at once.
    """
    failed: list[list[Any]] = []

    def connect(address: str, port: int) -> None:
        try:
            socket.create_connection((address, port), timeout).close()
        except OSError as e:
            failed.append([address, port, (e.strerror or str(e)).lower()])

    threads = [threading.Thread(target=connect, args=tuple(pair)) for pair in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed
