"""The processes of a job's tasks, found by what they were started with, and signals to them."""

import json
import os
import pathlib
import signal
import time

_FIND_WITHIN = 30.0  # s


def process_of(root: int, task: str) -> int:
    """The id of the process that is a task of a job.

    Args:
      root: id of the process that started the job; the task's process is one of its descendants.
      task: such as "worker 1".

    Raises:
      TimeoutError: there is no such process within 30 s.
    """
    role, _, index = task.partition(" ")
    deadline = time.monotonic() + _FIND_WITHIN
    while True:
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            pid = int(path.name)
            if task_of(pid) == (role, int(index)) and root in _ancestors(pid):
                return pid
        if time.monotonic() > deadline:
            raise TimeoutError(f"no process of {task} was found within {_FIND_WITHIN:g} s")
        time.sleep(0.1)


def send(root: int, task: str, signum: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to a task's process; see `process_of`."""
    os.kill(process_of(root, task), signum)


def task_of(pid: int) -> tuple[str, int] | None:
    """(role, index) of a process that runs Python by a TF_CONFIG, or a RANK, of its own."""
    try:
        told = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        variables = {name: value for name, _, value in (e.partition(b"=") for e in told)}
        if b"TF_CONFIG" in variables:
            task = json.loads(variables[b"TF_CONFIG"])["task"]
        else:
            task = {"type": "worker", "index": int(variables[b"RANK"])}
    except (OSError, ValueError, KeyError):
        return None
    is_python = words[0].rpartition(b"/")[2].startswith(b"python")
    return (task["type"], task["index"]) if is_python else None


def _ancestors(pid: int) -> list[int]:
    """The ids of a process's parent, its parent, and so on; empty if it has ended."""
    found = []
    try:
        while pid:
            # The name, in brackets, may have blanks.
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
            pid = int(stat.rpartition(")")[2].split()[1])
            found.append(pid)
    except OSError:
        return []
    return found
