"""Processes: who is below whom, how all of them are killed, and how a signal wakes a `select`."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def descendants(root: int) -> list[int]:
    """Returns the ids of the living processes below process `root`."""
    children = collections.defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as f:
                    state, parent = f.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue  # It has ended meanwhile.
            children[int(parent)].append((int(name), state not in (b"Z", b"X")))
    found, parents = [], [root]
    while parents:
        for pid, lives in children.pop(parents.pop(), ()):
            parents.append(pid)
            if lives:
                found.append(pid)
    return found


def kill_below(root: int, spared: Collection[int] = (), limit: float = 5.0) -> None:
    """Kills all processes below `root`, also those that are started meanwhile."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        living = [pid for pid in descendants(root) if pid not in spared]
        if not living:
            return
        for pid in living:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        reap(spared)
        time.sleep(0.01)


def reap(spared: Collection[int] = ()) -> None:
    """Takes the exit codes of children that have ended, but for those in `spared`."""
    try:
        if not spared:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            return
        with open(f"/proc/self/task/{os.getpid()}/children") as f:
            for pid in f.read().split():
                if int(pid) not in spared:
                    os.waitpid(int(pid), os.WNOHANG)
    except OSError:
        pass  # There is no child, or none is listed.


def become_subreaper() -> None:
    """Makes this process the parent of all below it that lose theirs."""
    if LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def exit_status(status: int) -> int:
    """Returns the exit code, or -n for signal n, of what `waitpid` gives."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class Wakeups:
    """A pipe that becomes readable when one of the signals comes."""

    def __init__(self, *signals: int):
        """Begins to listen; the signals no longer do what they did."""
        self.fd, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._write = write
        signal.set_wakeup_fd(write)
        for signum in signals:
            signal.signal(signum, lambda *_: None)

    def taken(self) -> list[int]:
        """Returns the numbers of the signals that have come."""
        try:
            return list(os.read(self.fd, 4096))
        except BlockingIOError:
            return []
