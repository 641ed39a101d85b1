"""Workers that were lost, answer again, and are taken into this process's context one by one."""

import contextlib
import threading
from collections.abc import Callable

from tfps.cluster import reconnecting
from tfps.cluster.members import Members, Task


class Admissions:
    """Connects to returned workers in a thread of its own, and keeps who has arrived."""

    def __init__(self, members: Members):
        """Seeks nobody yet; `members` are those of the cluster."""
        self._members = members
        self._arrived: list[int] = []
        self._thread: threading.Thread | None = None

    def seek(self, gone: set[Task], tell: Callable[[], object]) -> None:
        """Takes in those of the workers that answer; returns at once.

        Args:
          gone: workers that the caller would give calls again. Those that are not lost any more
            have arrived: a change that nobody waited for to its end has taken them in.
          tell: called when one of them has arrived, by the thread too.
        """
        for task in sorted(gone - self._members.lost()):
            if task.index not in self._arrived:
                self._arrived.append(task.index)
                tell()
        back = gone & self._members.returned()
        if not back or (self._thread is not None and self._thread.is_alive()):
            return
        # The thread may hang in TensorFlow, and must not keep the caller alive.
        members, arrived = self._members, self._arrived

        def reconnect() -> None:
            with contextlib.suppress(Exception):  # It is tried again.
                for task in reconnecting.reconnect(members, back):
                    arrived.append(task.index)
                    tell()

        self._thread = threading.Thread(target=reconnect, name="tfps-admits", daemon=True)
        self._thread.start()

    def take(self) -> int | None:
        """Returns a worker that has arrived and was not returned before; None if there is none."""
        return self._arrived.pop(0) if self._arrived else None
