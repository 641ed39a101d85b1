"""Parameter servers that are lost: who they are, and how long they are waited for."""

import time
from collections.abc import Callable, Collection

from tfps import errors
from tfps.cluster import failures, reconnecting
from tfps.cluster.loss_policy import LossPolicy
from tfps.cluster.members import PS_PATIENCE, Members, Task
from tfps.cluster.replacements import Replacements
from tfps.cluster.spec import Cluster

# s between two tries to take a ps in that is there again.
_PAUSE = 0.5


class LostServers:
    """Waits for lost parameter servers, and gives them other addresses if they do not return."""

    def __init__(self, cluster: Cluster, members: Members, policy: LossPolicy):
        """Nobody has been looked at yet.

        Args:
          cluster: to which this process is connected.
          members: who lives.
          policy: how long a ps is waited for, and who may take its place.
        """
        self._cluster, self._members = cluster, members
        self._timeout = policy.task_timeout
        self._replacements = Replacements(cluster, policy)
        self._moved: dict[Task, float] = {}  # ps -> s at which it got its present address

    def ask(self) -> frozenset[int]:
        """Asks all servers whether they live; returns the indices of the ps that are lost."""
        self._members.suspect()
        return frozenset(t.index for t in self._members.settle() if t.job == "ps")

    def outlast_silence(self) -> frozenset[int]:
        """Waits until every ps that is silent answers again, or is lost; returns their indices."""
        known = self._members
        silent = {task for task in known.silent() if task.job == "ps"}
        if silent:
            names = ", ".join(f"{task} ({known.address(task)})" for task in sorted(silent))
            failures.say(f"{names} does not answer; waiting up to {PS_PATIENCE:g} s")
        while silent & known.silent():
            known.wait_lost(_PAUSE, known.lost())
        return frozenset(task.index for task in silent)

    def noticed(self) -> float:
        """When the loss of the ps that is lost was noticed (`time.monotonic`, in s)."""
        found = [self._members.loss(task) for task in self._missing()]
        return min((loss.noticed for loss in found if loss), default=time.monotonic())

    def await_all(self, look: Callable[[], None] = lambda: None) -> frozenset[int]:
        """Waits until every lost ps is back, with an empty memory.

        Where the policy has other servers for one that does not return, it gets another address.

        Args:
          look: called about once a second of waiting; it may raise an error that ends the wait.

        Returns:
          The indices of the parameter servers that were lost.

        Raises:
          TaskLost: one of them did not return within the policy's `task_timeout`.
        """
        known, deadline = self._members, time.monotonic() + self._timeout
        lost: set[Task] = set()
        while missing := self._missing():
            lost |= missing
            look()
            if (left := deadline - time.monotonic()) <= 0:
                task = min(missing)
                raise failures.unavailable(
                    errors.TaskLost(
                        f"{task} ({known.address(task)}) is lost and did not return within "
                        f"task_timeout={self._timeout:g} s; start it again"
                    )
                )
            # Workers that are back are taken in as well: they are needed next.
            if known.wait_returned(min(left, 1.0)) and not reconnecting.reconnect(known):
                time.sleep(_PAUSE)
            self._replace(missing & known.lost() - known.returned())
        return frozenset(t.index for t in lost)

    def _missing(self) -> set[Task]:
        return {task for task in self._members.lost() if task.job == "ps"}

    def _replace(self, missing: Collection[Task]) -> None:
        """Gives lost parameter servers other addresses if they are not waited for any longer."""
        lost = frozenset(task.index for task in self._missing())
        for task in sorted(missing):
            loss = self._members.loss(task)
            since = max(loss.noticed if loss else 0.0, self._moved.get(task, 0.0))
            gone = time.monotonic() - since
            if (address := self._replacements.find(task.index, gone, lost)) is not None:
                self._moved[task] = time.monotonic()
                self._cluster.move_ps(task.index, address)
                self._members.move(task, address)
