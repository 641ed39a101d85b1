"""Bad ends of tasks, and which of them came first."""

import dataclasses
from collections.abc import Mapping, Sequence

from launch import exit_codes
from launch.topology import Task

FORGOTTEN = 600.0  # s after which a task that was started again is no longer why others fail


@dataclasses.dataclass(frozen=True)
class Failure:
    """A task's bad end.

    Attributes:
      task: whose.
      status: its exit code, or `-n` for signal n; None if its host was lost or did not start it.
      why: in words, such as "was killed by SIGKILL (exit code 137)".
      when: seconds on the supervisor's clock.
    """

    task: Task
    status: int | None
    why: str
    when: float

    @property
    def code(self) -> int:
        """The exit code that a job ends with that ends because of it."""
        return exit_codes.LOST if self.status is None else exit_codes.of_status(self.status)

    def __str__(self) -> str:
        return f"{self.task.name} on {self.task.host} ({self.task.endpoint}) {self.why}"


def first(failures: Sequence[Failure], restarted: Mapping[str, float]) -> Failure | None:
    """Returns the failure with which it began, or None if there was no failure.

    To lose a peer follows from another failure, so such an end comes first only if there is no
    other. What was started again and then lived for ten minutes has been got over.

    Args:
      failures: all failures.
      restarted: a task's name -> seconds on the supervisor's clock at which the task was last
        started again.
    """
    latest = max((f.when for f in failures), default=0.0)
    causes = [
        f
        for f in failures
        if latest - f.when < FORGOTTEN or restarted.get(f.task.name, 0.0) < f.when
    ]
    own = [f for f in causes if f.status != exit_codes.LOST]
    return min(own or causes, key=lambda f: f.when, default=None)
