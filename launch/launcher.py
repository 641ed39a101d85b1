"""What a launcher is: the protocol between `attempt.py`, which decides, and whoever runs tasks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from launch.topology import Role, Task, Topology


@dataclasses.dataclass(frozen=True)
class Line:
    """A task has written something.

    Attributes:
      task: the task's name, such as "worker 3".
      text: what it wrote, without the end of the line.
      end: what ended the text: a newline, a carriage return (the text is overwritten by the next),
        or nothing (the line goes on).
    """

    task: str
    text: str
    end: str = "\n"


@dataclasses.dataclass(frozen=True)
class Exited:
    """A task's process has ended, and all that it had started with it.

    Attributes:
      task: the task's name.
      status: its exit code, or `-n` if signal n ended it.
    """

    task: str
    status: int


@dataclasses.dataclass(frozen=True)
class HostLost:
    """A host no longer answers; what ran there is lost.

    Attributes:
      host: the host's name.
      why: what was seen.
      silent: seconds since something was last heard from it.
      connection: the number of the connection that was lost; see `Launcher.start`.
    """

    host: str
    why: str
    silent: float = 0.0
    connection: int = 0


@dataclasses.dataclass(frozen=True)
class Told:
    """A host was told to end, as Slurm tells the nodes of a job that is cancelled.

    Attributes:
      host: the host's name.
      signum: the signal that came there.
    """

    host: str
    signum: int


Event = Line | Exited | HostLost | Told


class Launcher(Protocol):
    """Runs the tasks of one job.

    Calls come from one thread, but for `hurry`. None of them waits without a limit.
    """

    def check(self, roles: Sequence[Role], again: bool = False) -> Topology:
        """Finds out whether the job can run, decides where, and keeps ports for it.

        Args:
          roles: what has to run.
          again: whether the job begins again. Hosts that were lost are then left out, if the others
            have room; tasks whose hosts live stay where they are, with their ports.

        Raises:
          LaunchError: the job cannot run; the message names host or task, and what to do.
        """
        ...

    def start(self, task: Task, environ: Mapping[str, str]) -> int:
        """Starts a task's process.

        Args:
          task: one of the topology's.
          environ: what is added to the environment that its host has.

        Returns:
          The number of the connection on which it was started; later ones have higher numbers.

        Raises:
          HostError: its host cannot be reached now. It may be tried again: a task that runs all the
            same is not started twice.
        """
        ...

    def watch(self, timeout: float) -> Event | None:
        """Returns what happened next, or None if nothing did within `timeout` seconds."""
        ...

    def signal(self, task: Task, signum: int) -> None:
        """Sends a signal to a task's process group. It is no error if the task is gone."""
        ...

    def stop(self, grace: float) -> None:
        """Ends all tasks: SIGTERM now, SIGKILL after `grace` seconds. Does not wait for them.

        `watch` goes on to tell of lines and exits, and is told of each task's exit.
        """
        ...

    def hurry(self) -> None:
        """Lets a `check` or `start` that waits for a host raise `HostError` within 2 s.

        The job is told to end. A signal handler calls this, so it must not wait, nor take a lock.
        """
        ...

    def close(self) -> None:
        """Ends what the launcher has started, and waits until nothing is left, 10 s at most."""
        ...
