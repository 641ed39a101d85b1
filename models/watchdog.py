"""Ends a process whose call does not return, where nothing inside TensorFlow has a time limit."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tfps import exit_codes


def give_up(message: str) -> None:
    """Prints one line and ends the process at once with the exit code 75.

    Threads of TensorFlow may be in a call that never returns, and TensorFlow's own clean-up waits
    for the lost peer. So neither is waited for.

    Args:
      message: what happened and what to do.
    """
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(exit_codes.LOST)


class Watchdog:
    """Limits how long blocks of code may take, and lets SIGTERM end the process."""

    _INTERVAL = 0.2  # s between two looks at the clock

    def __init__(self, on_expiry: Callable[[str], None] = give_up, ends_by_sigterm: bool = False):
        """Starts a thread that looks at the clock.

        Args:
          on_expiry: called from that thread with a text that says what took how long.
          ends_by_sigterm: true: SIGTERM ends the process at once, whatever it does. TensorFlow's
            coordination service takes the signal for a notice, and the process would go on.
        """
        self._on_expiry = on_expiry
        self._ends_by_sigterm = ends_by_sigterm
        self._limit: tuple[float, float, Callable[[], str]] | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(self._INTERVAL)
            if self._ends_by_sigterm:
                # Python's `signal.signal` works in the main thread only, which may be in a call.
                ctypes.CDLL(None).signal(int(signal.SIGTERM), ctypes.c_void_p(0))  # SIG_DFL
            current = self._limit
            if current and time.monotonic() > current[0]:
                self._limit = None
                self._on_expiry(f"no answer within {current[1]:g} s {current[2]()}")

    @contextlib.contextmanager
    def limit(self, seconds: float, what: Callable[[], str]) -> Iterator[None]:
        """Calls `on_expiry` if the block takes longer than `seconds`.

        Args:
          seconds: the longest time that the block may take. A limit within another limit replaces
            the outer limit while the inner block runs.
          what: returns what follows "no answer within 5 s" in the text; called on expiry only.
        """
        outer = self._limit
        self._limit = time.monotonic() + seconds, seconds, what
        try:
            yield
        finally:
            self._limit = outer
