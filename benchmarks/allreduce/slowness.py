"""One host slower than the others, by a limit of its processor time: a cgroup's CPU quota.

The kernel lets the host's processes run for a part of each period only, so all that the host does
is slower: computing, encoding and its share of the network's work.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator

_ROOT = "/sys/fs/cgroup/cpu"  # version 1
_ROOT_2 = "/sys/fs/cgroup"  # version 2
_PERIOD = 20_000  # µs


def why_not() -> str | None:
    """The reason why processor time cannot be limited here, or None if it can be."""
    try:
        with slowed([], 1.0):
            return None
    except OSError as e:
        return f"no CPU quota: {e.strerror.lower()} ({e.filename})"


@contextlib.contextmanager
def slowed(pids: Iterable[int], cores: float) -> Iterator[None]:
    """Lets some processes together have so much processor time while the block runs.

    Args:
      pids: the processes.
      cores: seconds of processor time in a second.
    """
    one = os.path.exists(os.path.join(_ROOT, "cpu.cfs_quota_us"))
    root = _ROOT if one else _ROOT_2
    group = os.path.join(root, f"tfps-slow-{os.getpid()}")
    os.mkdir(group)
    try:
        quota = int(cores * _PERIOD)
        if one:
            _write(group, "cpu.cfs_period_us", _PERIOD)
            _write(group, "cpu.cfs_quota_us", quota)
        else:
            _write(group, "cpu.max", f"{quota} {_PERIOD}")
        for pid in pids:
            _write(group, "cgroup.procs", pid)
        yield
    finally:
        for pid in _members(group):
            with contextlib.suppress(OSError):  # It may have ended.
                _write(root, "cgroup.procs", pid)
        os.rmdir(group)


def _members(group: str) -> list[str]:
    with open(os.path.join(group, "cgroup.procs")) as file:
        return file.read().split()


def _write(folder: str, name: str, value: object) -> None:
    with open(os.path.join(folder, name), "w") as file:
        file.write(str(value))
