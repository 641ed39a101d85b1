"""The processes of all families of systems on the hosts of one network."""

import collections
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.wire.family import Family, Start
from benchmarks.wire.program import Failed, Refused
from benchmarks.wire.starts import STARTS
from benchmarks.wire.systems import System

# In namespaces every host has its own ports, so only two families must not use the same ports.
_FIRST_PORT = 2222

# How often a family's processes may be lost. Each loss costs a timeout and a new start.
_LOSSES = 3


class Fleet:
    """All families on one network; a context manager that ends their processes."""

    def __init__(
        self,
        network,
        folder: str,
        threads: int,
        timeout: float,
        starts: Mapping[str, Start] = STARTS,
    ):
        """Starts nothing yet.

        Args:
          network: a `hosts.Network` or `hosts.Loopback`, entered.
          folder: for the processes' logs.
          threads: compute threads of each process, the same for all systems.
          timeout: seconds that a start or a turn may take.
          starts: name of a family -> what starts its processes.
        """
        environ = _environ(threads)
        self._families = {
            name: Family(name, start, _FIRST_PORT + i, network, folder, environ, timeout)
            for i, (name, start) in enumerate(starts.items())
        }
        self._losses: collections.Counter = collections.Counter()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_) -> None:
        for family in self._families.values():
            family.end()

    def turn(self, system: System, warmup: int, steps: int) -> dict:
        """One turn of a system; see `Family.run`.

        Raises:
          Failed: what no longer answers is ended. Its family starts anew with the
            next turn, unless that was so too often.
        """
        return self._of(system, lambda family: family.run(system, warmup, steps))

    def ask(self, system: System, message: dict, what: str) -> list[dict]:
        """Sends a message to a system's family; see `Family.ask`. Raises as `turn` does."""
        return self._of(system, lambda family: family.ask(message, what))

    def pids(self, host: str) -> list[int]:
        """The processes that run on a host."""
        found = [family.pid(host) for family in self._families.values()]
        return [pid for pid in found if pid is not None]

    def _of(self, system: System, call: Callable[[Family], Any]) -> Any:
        if self._losses[system.family] >= _LOSSES:
            raise Failed(f"processes of {system.family} were lost {_LOSSES} times; given up")
        family = self._families[system.family]
        try:
            return call(family)
        except Failed as e:
            # If other workers take part, they now wait for this worker in the middle of a step.
            if not isinstance(e, Refused) or len(family.speakers) > 1:
                self._losses[system.family] += 1
                family.end()
            raise


def _environ(threads: int) -> dict[str, str]:
    """Gives all systems the same conditions: CPU, number of threads, no proxy between the hosts."""
    # gRPC would send connections to the hosts through a proxy.
    environ = {k: v for k, v in os.environ.items() if not re.fullmatch(r"(?i)\w+_proxy", k)}
    return {
        **environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TFPS_PARENT": str(os.getpid()),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }
