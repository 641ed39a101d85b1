"""Starts a server process of this machine again when it dies, as a launcher does on real ones."""

import collections
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from tfps import exit_codes

HOUR = 3600.0  # s
_FIRST, _MOST = 0.1, 30.0  # s; the delays before restarts of one server, which double
_STEADY = 20.0  # s; a server that lived for this long begins with the first delay again

# Codes that the same program would end with again.
_FINAL = (exit_codes.DONE, exit_codes.FAILED, exit_codes.FLAGS, exit_codes.CLUSTER)


class Budget:
    """How many restarts the servers of a cluster may have within a sliding hour, together."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic):
        """Begins with nothing spent.

        Args:
          limit: restarts within an hour.
          clock: returns the time in s.
        """
        self.limit = limit
        self._clock = clock
        self._spent: collections.deque[tuple[float, str]] = collections.deque()
        self._due: dict[str, tuple[int, float]] = {}  # name -> (failures, s of the last start)
        self._lock = threading.Lock()

    def spend(self, name: str) -> float | None:
        """Takes one restart.

        Args:
          name: of the server.

        Returns:
          The s to wait before the restart, or None if none is left.
        """
        with self._lock:
            now = self._clock()
            while self._spent and self._spent[0][0] <= now - HOUR:
                self._spent.popleft()
            if len(self._spent) >= self.limit:
                return None
            failures, started = self._due.get(name, (0, now))
            if now - started >= _STEADY:
                failures = 0
            self._spent.append((now, name))
            delay = min(_MOST, _FIRST * 2.0 ** min(failures, 60))
            self._due[name] = failures + 1, now + delay
            return delay


class Kept:
    """A server process, and those that take its place.

    Attributes:
      name: of the server, such as "worker 0".
      process: the present process.
    """

    def __init__(self, name: str, start: Callable[[], subprocess.Popen], budget: Budget):
        """Starts the process, and a thread that waits for its end.

        Args:
          name: of the server.
          start: starts a process.
          budget: whose restarts are used.
        """
        self.name = name
        self.process = start()
        self._start, self._budget = start, budget
        self._released = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name=f"tfps-keeps-{name}", daemon=True).start()

    def release(self) -> None:
        """Lets the process end for good."""
        with self._lock:
            self._released.set()

    def _watch(self) -> None:
        while True:
            code = self.process.wait()
            if code in _FINAL or self._released.is_set():
                return
            delay = self._budget.spend(self.name)
            if delay is None:
                self._say(
                    f"ended with {code}, and the cluster has used its {self._budget.limit} "
                    "restarts of this hour; give tfps.LocalCluster more restarts"
                )
                return
            self._say(f"ended with {code}, and is started again")
            self._released.wait(delay)
            with self._lock:
                if self._released.is_set():
                    return
                self.process = self._start()

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # Nobody may be left to be told.
            print(f"[{self.name}] {line}", file=sys.stderr, flush=True)
