"""Two questions to a server that need no TensorFlow: does its process run, and which process is it.

A TCP connection says little: the kernel accepts it for a process that is frozen. TensorFlow's
servers speak gRPC, and thus HTTP/2 (RFC 9113), in which both sides begin with a SETTINGS frame. A
server sends that frame from its network threads, whatever its operations do, and a frozen or
vanished server does not. TensorFlow's own question (`check_alive`) has no deadline and holds the
interpreter's lock; these questions have one, and leave the interpreter alone while they wait.
"""

import enum
import socket
import struct
import time
from collections.abc import Iterator

from tfps.cluster import sockets

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4

# TensorFlow's method that lists a server's devices. Its request is an empty message.
_METHOD = b"/tensorflow.WorkerService/GetStatus"

# A gRPC message: not compressed, of 0 bytes.
_EMPTY = b"\0\0\0\0\0"


class Answer(enum.Enum):
    """What came of a question to an address.

    Attributes:
      ANSWERS: a gRPC server that runs has answered.
      SILENT: nothing came in time. The process may be frozen or very busy, its host gone, or the
        network slow.
      GONE: the host says that no process listens, or a process that is ending hung up.
    """

    ANSWERS = "answers"
    SILENT = "silent"
    GONE = "gone"


def greet(address: str, timeout: float) -> Answer:
    """Asks whether a gRPC server runs at an address.

    Args:
      address: `host:port`.
      timeout: s that the answer may take.
    """
    deadline = time.monotonic() + timeout
    try:
        with _connected(address, deadline) as connection:
            kind, *_ = next(_frames(connection, deadline))
    except TimeoutError:
        return Answer.SILENT
    except (ConnectionError, StopIteration):
        return Answer.GONE
    except OSError:  # The name of a host that is not there, or no way to its network.
        return Answer.SILENT
    return Answer.ANSWERS if kind == _SETTINGS else Answer.GONE


def status(address: str, timeout: float) -> bytes | None:
    """Asks a TensorFlow server for its devices.

    The answer needs a thread of the server's pool for operations, which may be busy: no answer does
    not mean that the server is gone.

    Args:
      address: `host:port`.
      timeout: s that the answer may take.

    Returns:
      A serialized `GetStatusResponse` of TensorFlow's `worker.proto`; None if there was no answer.
    """
    deadline = time.monotonic() + timeout
    body = b""
    try:
        with _connected(address, deadline) as connection:
            connection.sendall(
                _frame(_HEADERS, _END_HEADERS, 1, _headers(address))
                + _frame(_DATA, _END_STREAM, 1, _EMPTY)
            )
            for kind, flags, stream, payload in _frames(connection, deadline):
                if stream == 1 and kind == _DATA:
                    body += payload
                if stream == 1 and flags & _END_STREAM:
                    return body[len(_EMPTY) :] or None
    except OSError:
        pass
    return None  # Also if the server hung up amid its answer.


def _connected(address: str, deadline: float) -> socket.socket:
    """Connects, and begins to speak HTTP/2."""
    connection = socket.create_connection(sockets.split(address), timeout=_left(deadline))
    try:
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
    except BaseException:
        connection.close()
        raise
    return connection


def _left(deadline: float) -> float:
    if (seconds := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _headers(address: str) -> bytes:
    """Returns the headers of the request in HPACK (RFC 7541), all as literals or from its table."""
    return b"".join(
        [
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + _text(_METHOD),  # :path
            b"\x01" + _text(address.encode()),  # :authority
            b"\x0f\x10" + _text(b"application/grpc"),  # content-type
            b"\x00" + _text(b"te") + _text(b"trailers"),
        ]
    )


def _text(value: bytes) -> bytes:
    value = value[:126]  # A longer one would need more bytes for its length.
    return bytes([len(value)]) + value


def _frames(connection: socket.socket, deadline: float) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields (kind, flags, stream, payload) of each frame; ends when the server hangs up."""
    received = b""
    while True:
        while len(received) >= 9:
            size = int.from_bytes(received[:3], "big")
            if len(received) < 9 + size:
                break
            kind, flags, stream = struct.unpack(">BBI", received[3:9])
            yield kind, flags, stream & 0x7FFFFFFF, received[9 : 9 + size]
            received = received[9 + size :]
        connection.settimeout(_left(deadline))
        if not (more := connection.recv(65536)):
            return
        received += more
