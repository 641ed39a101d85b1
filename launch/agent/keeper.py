"""A keeper: starts one task, passes signals on to it, and ends all that it has started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Any, NoReturn

from launch.agent.processes import (
    LIBC,
    PR_SET_PDEATHSIG,
    Wakeups,
    become_subreaper,
    descendants,
    exit_status,
    kill_below,
)

ORPHANED_GRACE = 5.0  # s between SIGTERM and SIGKILL where the agent or the launcher is gone


def execute(keeper: int, request: dict[str, Any], output: int) -> NoReturn:
    """Makes this process the task; never returns."""
    try:
        if LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or os.getppid() != keeper:
            os._exit(1)
        os.setsid()
        for signum in range(1, 32):
            if signum not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(signum, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, at in ((null, 0), (output, 1), (output, 2)):
            os.dup2(fd, at)
        os.closerange(3, open_limit())
        os.chdir(request["folder"])
        if request.get("cores"):
            os.sched_setaffinity(0, request["cores"])
        environ = dict(os.environ)
        environ.update(request["environ"])
        argv = request["argv"]
        os.execvpe(argv[0], argv, environ)
    except BaseException as e:
        os.write(2, ("cannot start {}: {}\n".format(request["argv"][0], e)).encode())
        missing = isinstance(e, (FileNotFoundError, NotADirectoryError))
        os._exit(127 if missing else 126)


def open_limit() -> int:
    """One more than the highest number of a file that this process may have open."""
    try:
        return max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
    except OSError:
        return 4096


def keep(request: dict[str, Any], control: int, output: int, status: int) -> NoReturn:
    """Runs a task and ends all that it has started; the life of a keeper, which never returns.

    Args:
      request: what to run.
      control: a pipe with lines "signal n" and "stop seconds"; it ends when the agent is gone.
      output: the pipe for what the task writes.
      status: the pipe for its exit status.
    """
    for fd in range(3, open_limit()):
        if fd not in (control, output, status):
            with contextlib.suppress(OSError):
                os.close(fd)
    null = os.open(os.devnull, os.O_RDWR)
    for at in (0, 1, 2):
        os.dup2(null, at)
    os.setsid()
    become_subreaper()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    wakeups = Wakeups(signal.SIGCHLD)
    me = os.getpid()
    begun, held = os.pipe()
    task = os.fork()
    if task == 0:
        signal.set_wakeup_fd(-1)
        execute(me, request, output)
    os.close(output)
    # Before the task has its own process group and heeds signals, one that is sent to it is lost.
    # It closes its end of this pipe afterwards.
    os.close(held)
    os.read(begun, 1)
    os.close(begun)
    code = Keeper(task, control, wakeups).run()
    kill_below(me)
    with contextlib.suppress(OSError):  # The agent is gone.
        os.write(status, b"%d\n" % code)
    os._exit(0)


class Keeper:
    """Waits for a task while it does what the agent says."""

    def __init__(self, task: int, control: int, wakeups: Wakeups):
        """Watches a task.

        Args:
          task: its process, and its process group.
          control: the pipe from the agent.
          wakeups: wakes up when a child has ended.
        """
        self._task, self._control, self._wakeups = task, control, wakeups
        self._code: int | None = None
        self._deadline: float | None = (
            None  # When what is left is killed; None while nothing has to stop.
        )

    def run(self) -> int:
        """Returns the task's exit status, when it and what it should wait for have ended."""
        waited_for = [self._control, self._wakeups.fd]
        while True:
            self._wakeups.taken()
            self._reap()
            if self._code is not None and not self._others_may_go_on():
                return self._code
            if self._deadline is not None and time.monotonic() >= self._deadline:
                kill_below(os.getpid(), spared=(self._task,) if self._code is None else ())
                self._kill(signal.SIGKILL)
                self._reap()
                if self._code is not None:
                    return self._code
            ready = select.select(waited_for, [], [], 0.05 if self._deadline else None)[0]
            if self._control in ready and not self._obey(os.read(self._control, 4096)):
                waited_for.remove(self._control)
                self._stop(ORPHANED_GRACE)

    def _others_may_go_on(self):
        """Whether a process of the task's group, such as a shell's command, still has its grace."""
        if self._deadline is None or time.monotonic() >= self._deadline:
            return False
        try:
            os.killpg(self._task, 0)
        except OSError:
            return False
        return bool(descendants(os.getpid()))

    def _reap(self):
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._task:
                    self._code = exit_status(status)
        except ChildProcessError:
            pass

    def _obey(self, said):
        for line in said.decode().splitlines():
            word, value = line.split()
            if word == "stop":
                self._stop(float(value))
            else:
                self._kill(int(value))
        return bool(said)

    def _stop(self, grace):
        deadline = time.monotonic() + grace
        if self._deadline is None:
            self._kill(signal.SIGTERM)
            self._deadline = deadline
        self._deadline = min(self._deadline, deadline)

    def _kill(self, signum):
        try:
            os.killpg(self._task, signum)
        except OSError:
            try:  # It has not made its session yet.
                if self._code is None:
                    os.kill(self._task, signum)
            except OSError:
                pass
