"""Turns of what must not happen at once: the chief writes to servers, or tasks join and leave.

While the tasks of TensorFlow's context change, a tensor that this process sends to one of them can
get lost (see `tfps._tf_copies`). Calls on workers are safe. What the chief itself asks of
servers consists of operations of TensorFlow, which are not.
"""

import contextlib
import threading
from collections.abc import Iterator

# s after which whoever waits for a turn goes on without: what it waits for may hang, and that both
# go wrong is improbable. A change of the tasks may be what ends a hanging request.
_REQUEST_WAITS, _CHANGE_WAITS = 10.0, 2.0

_turns = threading.Condition()
_requests = 0
_changes = 0


@contextlib.contextmanager
def request(limit: float = _REQUEST_WAITS) -> Iterator[None]:
    """Waits until no tasks join or leave; none do within the block. Requests go on side by side.

    Args:
      limit: s to wait. Afterwards the block runs in any case.
    """
    global _requests
    with _turns:
        _turns.wait_for(lambda: not _changes, limit)
        _requests += 1
    try:
        yield
    finally:
        with _turns:
            _requests -= 1
            _turns.notify_all()


@contextlib.contextmanager
def change(limit: float = _CHANGE_WAITS) -> Iterator[None]:
    """Waits until no request is under way; new ones wait until the block ends.

    Args:
      limit: s to wait. Afterwards the block runs in any case.
    """
    global _changes
    with _turns:
        _turns.wait_for(lambda: not _requests and not _changes, limit)
        _changes += 1
    try:
        yield
    finally:
        with _turns:
            _changes -= 1
            _turns.notify_all()
