"""What tests of launchers need to know of processes and ports."""

import os
import pathlib
import socket


def free_ports(count: int) -> list[int]:
    """Different ports that were free on this machine a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def with_word(word: str) -> list[int]:
    """Ids of the living processes that have a word in their command line, this one left out."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            zombie = b") Z" in (path.parent / "stat").read_bytes()
        except OSError:
            continue
        if word.encode() in words and not zombie and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found
