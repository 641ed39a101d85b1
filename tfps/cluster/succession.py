"""How a chief that starts finds out whether the servers still hold the memory of another chief.

A chief that died leaves its variables in the servers' memory, where the next chief cannot see them.
Servers whose host says that no chief listens start anew by themselves. Where the chief's host is
gone as well, nobody says so. So each chief leaves its name on the servers that it connects to, and
a chief that finds another name has that server start anew before it connects.
"""

import functools
import os
import threading
import time
import uuid
from collections.abc import Iterable

import tensorflow as tf

from tfps import _tf_members
from tfps.cluster import greeting, shutdown

# s for one message.
_ANSWER = 5.0

# s between two looks at a server that starts anew.
_POLL = 0.1

# s for a server that answers to say which process it is, and who was its chief. Whoever connects
# next will see what is wrong with one that does not.
_PATIENCE = 60.0


@functools.cache
def _name(process: int) -> str:
    """Returns the name of a chief, which is a process; one that was forked has its own."""
    return f"{process}-{uuid.uuid4()}"


def claim(servers: Iterable[tuple[str, int, str]], timeout: float) -> None:
    """Leaves this chief's name on servers; those with another chief's name start anew first.

    A server that TensorFlow started, without `tfps.serve`, is left alone.

    Args:
      servers: (job, index, `host:port`) of servers that answer.
      timeout: s to wait for all servers together. A server that takes longer is left as it is.
    """
    deadline = time.monotonic() + timeout
    threads = [
        threading.Thread(target=_claim, args=(*server, deadline), name="tfps-claims", daemon=True)
        for server in servers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _claim(job: str, index: int, address: str, deadline: float) -> None:
    own = _name(os.getpid())
    # It may be slow, or be about to start anew, without anybody's word.
    patience = min(deadline, time.monotonic() + _PATIENCE)
    while time.monotonic() < patience:
        before = _process(address)
        name = None if before is None else _owner(job, index, address, own)
        if name == own:
            return
        if name is not None:
            # It starts anew within seconds, and is then another process at the same address.
            while time.monotonic() < deadline and _process(address) in (None, before):
                time.sleep(_POLL)
            patience = min(deadline, time.monotonic() + _PATIENCE)
        time.sleep(_POLL)


def _process(address: str) -> int | None:
    """Returns a number by which a server's process is known; None if it has not answered."""
    return _tf_members.incarnation(greeting.status(address, _ANSWER))


def _owner(job: str, index: int, address: str, own: str) -> str | None:
    """Leaves this chief's name on a server; one that has another name is told to start anew.

    Returns:
      The name of the chief before; `own` if there was none, or if nobody reads there; None if the
      server did not answer.
    """
    options = tf.compat.v1.RunOptions(timeout_in_ms=int(_ANSWER * 1000))
    with tf.Graph().as_default():
        serves = shutdown.queue(job, index, "serves").size()
        owners = shutdown.queue(job, index, "owner")
        known, put, name = owners.size(), owners.enqueue(own), owners.dequeue()
        with tf.control_dependencies([owners.enqueue(name)]):
            shown = tf.identity(name)  # It stays, so that a question that failed can be repeated.
        anew = shutdown.queue(job, index).enqueue(shutdown.ANEW)
        try:
            with shutdown.session(f"grpc://{address}", job, index) as opened:
                if not opened.run(known, options=options):
                    opened.run(put, options=options)
                owner = opened.run(shown, options=options).decode()
                # A server that has just come may not read yet, and has no memory.
                if owner != own and opened.run(serves, options=options):
                    opened.run(anew, options=options)
                    return owner
                return own
        except tf.errors.OpError:
            return None
