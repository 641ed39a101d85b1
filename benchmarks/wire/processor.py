"""The processor time that the processes of a system take, by role."""

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ROLES = ("worker", "ps", "chief")

_TICK = os.sysconf("SC_CLK_TCK")  # parts of a second that the kernel counts in


class Time(NamedTuple):
    """Processor time in seconds, of all threads together."""

    user: float
    system: float

    def __add__(self, other: object) -> "Time":
        assert isinstance(other, tuple)
        return Time(self.user + other[0], self.system + other[1])

    def __sub__(self, other: "Time") -> "Time":
        return Time(self.user - other.user, self.system - other.system)


def parse(stat: str) -> Time:
    """The time of a process and of its children that have ended, from `/proc/PID/stat`."""
    # The name of the program, in brackets, may itself have spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    user, system, of_children, system_of_children = map(int, fields[11:15])
    return Time((user + of_children) / _TICK, (system + system_of_children) / _TICK)


def of(hosts: Iterable[tuple[str, int]]) -> dict[str, Time]:
    """Host -> what its process has taken so far; a process that has ended is left out.

    Args:
      hosts: (host, id of its process).
    """
    found: dict[str, Time] = {}
    for host, pid in hosts:
        try:
            with open(f"/proc/{pid}/stat") as file:
                found[host] = found.get(host, Time(0.0, 0.0)) + parse(file.read())
        except OSError:
            continue
    return found


def per_step(
    before: Mapping[str, Time], after: Mapping[str, Time], steps: int
) -> dict[str, tuple[float, float]]:
    """Role -> (user, system) seconds for a step of one worker.

    Args:
      before, after: of `of`.
      steps: of all workers together.
    """
    found: dict[str, tuple[float, float]] = {}
    for role in ROLES:
        hosts = [host for host in before if host.rstrip("0123456789") == role and host in after]
        if hosts:
            taken = [after[host] - before[host] for host in hosts]
            found[role] = (
                sum(t.user for t in taken) / steps,
                sum(t.system for t in taken) / steps,
            )
    return found
