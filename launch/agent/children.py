"""A task as its agent sees it."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from launch.agent.keeper import keep
from launch.agent.lines import Lines


class Child:
    """A task, as the agent sees it: its keeper, and the pipes to both.

    Attributes:
      name: the task's name.
      request: what the launcher asked for when the task was started.
      is_stopping: whether the task was told to end.
    """

    def __init__(
        self, name: str, request: dict[str, Any], pid: int, control: int, output: int, status: int
    ):
        """Notes the keeper's process, and the agent's ends of the pipes; see `keeper.keep`."""
        self.name, self.request, self.pid = name, request, pid
        self.is_stopping = False
        self.control, self.status = control, status
        self.output: int | None = output  # None when nobody can write any more.
        self.lines = Lines()

    def tell(self, word: str, value: float) -> None:
        """Says "signal n" or "stop seconds" to the keeper."""
        self.is_stopping = self.is_stopping or word == "stop"
        with contextlib.suppress(OSError):  # The keeper has ended.
            os.write(self.control, f"{word} {value}\n".encode())


def start(name: str, request: dict[str, Any]) -> Child:
    """Starts a keeper with its task; returns the `Child`."""
    control, control_end = os.pipe2(os.O_CLOEXEC)
    output_end, output = os.pipe2(os.O_CLOEXEC)
    status_end, status = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            keep(request, control, output, status)
        finally:
            os._exit(1)
    for fd in (control, output, status):
        os.close(fd)
    for fd in (control_end, output_end, status_end):
        os.set_blocking(fd, False)
    return Child(name, request, pid, control_end, output_end, status_end)
