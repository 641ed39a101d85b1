"""Turns of what must not happen at once: the chief writes to servers, or tasks join and leave.

While the tasks of TensorFlow's context change, a tensor that this process sends to one of them can
get lost (see `tfps._tf_copies`). Calls on workers are safe. What the chief itself asks of
servers consists of operations of TensorFlow, which are not.
"""

import contextlib
import threading
from collections.abc import Iterator

# s after which whoever waits for a turn goes on without: the other one may be stuck for ever, and
# that both go wrong is improbable.
_LIMIT = 10.0

_turn = threading.Lock()


@contextlib.contextmanager
def taken(limit: float = _LIMIT) -> Iterator[None]:
    """Waits for the turn, and has it within the block.

    Args:
      limit: s to wait. Afterwards the block runs without the turn.
    """
    has_turn = _turn.acquire(timeout=limit)
    try:
        yield
    finally:
        if has_turn:
            _turn.release()
