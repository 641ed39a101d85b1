"""Ends this process's connections to a task that is lost, so that no call waits for it.

TensorFlow waits for the answer of a frozen process, or of a vanished host, for minutes, and nothing
can interrupt it. But the connections are this process's own: once they are shut, gRPC's calls over
them fail at once. Linux says in /proc which connections there are.
"""

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator

from tfps.cluster import sockets

_TABLES = (("/proc/self/net/tcp", socket.AF_INET), ("/proc/self/net/tcp6", socket.AF_INET6))


def cut(address: str) -> int:
    """Shuts every connection of this process to an address, those that are being made included.

    Args:
      address: `host:port`.

    Returns:
      The number of connections that were shut; 0 on systems without /proc, and where the host's
      name leads nowhere.
    """
    try:
        peers = _peers(address)
        inodes = {inode for peer, inode in _connections() if peer in peers}
        return sum(_shut(fd) for fd in _descriptors(inodes)) if inodes else 0
    except OSError:
        return 0


def _peers(address: str) -> set[tuple[str, int]]:
    host, port = sockets.split(address)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {(str(where[0]), port) for *_, where in found}


def _connections() -> Iterator[tuple[tuple[str, int], str]]:
    """Yields ((host, port) of the other side, inode) of each TCP connection of this network."""
    for path, family in _TABLES:
        with contextlib.suppress(FileNotFoundError), open(path) as table:
            next(table)
            for line in table:
                _, _, remote, *rest = line.split()
                host, port = remote.split(":")
                yield (_host(host, family), int(port, 16)), rest[6]


def _host(text: str, family: socket.AddressFamily) -> str:
    """Returns the numeric host of /proc's text: 32-bit words, each in the machine's own order."""
    words = re.findall(".{8}", text)
    packed = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    return socket.inet_ntop(family, packed).removeprefix("::ffff:")


def _descriptors(inodes: set[str]) -> Iterator[int]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") in wanted:
                yield int(name)


def _shut(descriptor: int) -> bool:
    # gRPC goes on to own the descriptor: a copy of it is shut, which shuts the connection.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.shutdown(socket.SHUT_RDWR)
        return True
    return False
