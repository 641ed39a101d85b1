"""A task as its agent sees it."""

import contextlib
import os
import signal

from launch.agent.keeper import keep
from launch.agent.lines import Lines


class Child:
    """A task, as the agent sees it: its keeper, and the pipes to both."""

    def __init__(self, name, pid, control, output, status):
        self.name, self.pid = name, pid
        self.control, self.output, self.status = control, output, status
        self.lines = Lines()

    def tell(self, word, value):
        with contextlib.suppress(OSError):  # The keeper has ended.
            os.write(self.control, f"{word} {value}\n".encode())


def start(name, request):
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
    return Child(name, pid, control_end, output_end, status_end)
