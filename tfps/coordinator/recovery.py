"""Takes workers and parameter servers in again that were lost, while there is a coordinator."""

import threading
import time
import weakref
from collections.abc import Callable

from tfps import errors
from tfps.cluster import failures, reconnecting
from tfps.cluster.members import Members, Task

# s that one look for returned tasks takes, at most.
_LOOK = 1.0

# s to wait for a worker to come back when all are lost: TensorFlow's limit.
LIMIT = 3600.0

# s after an attempt to take tasks in that has failed.
_PAUSE = 0.3


class Recovery:
    """A thread that runs while tasks are lost, and takes in those that return.

    Attributes:
      error: why no task can be taken in any more; None while that is possible.
    """

    def __init__(self, members: Members, changed: Callable[[], None]):
        """Has no thread yet.

        Args:
          members: the cluster's members.
          changed: called after tasks were taken in; it is not kept alive.
        """
        self.error: errors.Error | None = None
        self._members = members
        self._changed = weakref.WeakMethod(changed)
        self._lock = threading.Lock()
        self._told: set[Task] = set()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Looks after the tasks that are lost now."""
        with self._lock:
            for task in self._members.lost() - self._told:
                self._tell(task)
            if self._told and self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="tfps-coordinator-recovers", daemon=True
                )
                self._thread.start()

    def _tell(self, task: Task) -> None:
        self._told.add(task)
        if (loss := self._members.loss(task)) is not None:
            rest = {"worker": "its functions run elsewhere until it is back"}.get(
                task.job, "its variables are lost"
            )
            failures.say(f"{task} ({self._members.address(task)}) {loss.why}; {rest}")

    def _run(self) -> None:
        while self._is_needed():
            self._members.wait_returned(_LOOK)
            if not self._members.returned():
                continue
            try:
                if not reconnecting.reconnect(self._members):
                    time.sleep(_PAUSE)
            except errors.Error as e:
                self.error = e
            self._tell_returned()

    def _is_needed(self) -> bool:
        with self._lock:
            needed = (
                self._changed() is not None and self.error is None and bool(self._members.lost())
            )
            if not needed:
                self._thread = None
        if not needed:
            self._tell_returned()
        return needed

    def _tell_returned(self) -> None:
        with self._lock:
            back = self._told - self._members.lost()
            self._told -= back
        for task in sorted(back):
            failures.say(f"{task} ({self._members.address(task)}) is back")
        if (changed := self._changed()) is not None:
            changed()


def is_waited_too_long(members: Members, limit: float) -> errors.TaskLost | None:
    """Returns the error if every worker has been lost for longer than `limit` s."""
    workers = [task for task in members.tasks() if task.job == "worker"]
    losses = [members.loss(task) for task in workers]
    if any(loss is None or time.monotonic() - loss.noticed < limit for loss in losses):
        return None
    return errors.TaskLost(
        f"all {len(workers)} workers are lost, and none has come back within {limit:g} s; start "
        "them again at their addresses"
    )
