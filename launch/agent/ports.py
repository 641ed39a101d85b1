"""Ports that are chosen for tasks, and kept for them."""

from __future__ import annotations

import socket


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
