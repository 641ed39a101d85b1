"""Processor time: of a function in this process, and of other processes of this machine."""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tfps import errors


class Timing(NamedTuple):
    """What calls of a function took.

    Attributes:
      seconds: of processor time, the median.
      spread: standard deviation as a share of it, without the calls that took longest.
      threads: how many processors a call used at once, at best.
    """

    seconds: float
    spread: float
    threads: float


def timed(call: Callable[[], Any], seconds: float, least: int = 5, most: int = 200) -> Timing:
    """Calls a function again and again; the first two calls, which may compile, do not count.

    Args:
      call: returns when it is done, or returns tensors that are waited for.
      seconds: of elapsed time, for all calls.
      least, most: calls that count.
    """
    for _ in range(2):
        _wait(call())
    busy: list[float] = []
    elapsed: list[float] = []
    end = time.perf_counter() + seconds
    while len(busy) < least or (len(busy) < most and time.perf_counter() < end):
        begun, start = time.process_time(), time.perf_counter()
        _wait(call())
        elapsed.append(time.perf_counter() - start)
        busy.append(time.process_time() - begun)
    middle = statistics.median(busy)
    # The upper quarter is what other programs have disturbed.
    calm = sorted(busy)[: max(2, len(busy) * 3 // 4)]
    spread = statistics.pstdev(calm) / middle if middle else 0.0
    threads = middle / max(min(elapsed), 1e-9)
    return Timing(middle, spread, min(max(1.0, threads), float(os.cpu_count() or 1)))


def _wait(result: Any) -> None:
    """Waits for the tensors of a result: a copy of one element each is enough."""
    for t in result if isinstance(result, list | tuple) else [result]:
        if hasattr(t, "numpy") and not getattr(t, "shape", None):
            t.numpy()


_TICK = os.sysconf("SC_CLK_TCK")


def of_processes(pids: Iterable[int]) -> float:
    """Seconds of processor time that processes have taken so far, their threads included.

    Raises:
      ConfigError: one of them is not on this machine.
    """
    total = 0.0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError as e:
            raise errors.ConfigError(
                f"the processor time of process {pid} cannot be read ({e.strerror}); measure with "
                "LocalCluster(processes=True) on Linux"
            ) from e
        total += (int(fields[11]) + int(fields[12])) / _TICK
    return total
