"""Turns of all systems on one link, so that a slow phase of the machine slows all of them."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.wire import report
from benchmarks.wire.fleet import Fleet
from benchmarks.wire.program import Failed
from benchmarks.wire.sizes import WORKERS
from benchmarks.wire.systems import System

# The first turn compiles everything and measures how long a step takes. It has one step before the
# clock starts and one step after.
_PROBE = (1, 1)
# On a slow link one step is warm-up enough.
_LONGEST_WARMUP = 4.0  # s, but for the one step that there has to be


class Length(NamedTuple):
    """How long is measured.

    Attributes:
      rounds: turns of each system.
      warmup: steps of a worker before a turn is timed, at most.
      steps: steps of a worker that a turn times; None: as many as take about `seconds`.
      seconds: that a turn is timed for.
      least_steps: that a turn times at least.
    """

    rounds: int
    warmup: int
    steps: int | None
    seconds: float
    least_steps: int

    def of_turn(self, last: float, stride: int) -> tuple[int, int]:
        """Steps of a worker in a turn: before the clock starts, and after.

        Args:
          last: seconds that a step took in the turn before.
          stride: the steps come in so many at a time.
        """
        together = last * stride
        warmup = max(1, min(self.warmup, int(_LONGEST_WARMUP / together)))
        steps = self.steps or steps_for(together, self.seconds, self.least_steps)
        return warmup * stride, steps * stride


def steps_for(seconds_per_step: float, seconds: float, at_least: int) -> int:
    """How many steps of a worker take about `seconds`."""
    return max(at_least, round(seconds / max(seconds_per_step, 1e-3)))


def step_time(answer: dict) -> float:
    """Seconds that one step of one worker takes while all workers train."""
    return answer["seconds"] * WORKERS / answer["steps"]


class _Turns:
    def __init__(self, place: str, fleet: Fleet, length: Length):
        self._place, self._fleet, self._length = place, fleet, length
        self.done: dict[str, list[dict]] = {}
        self.errors: dict[str, str] = {}
        self._last: dict[str, float] = {}

    def take(self, system: System, number: int) -> None:
        probe = number == 0
        if probe:
            warmup, steps = (system.stride * n for n in _PROBE)
        else:
            warmup, steps = self._length.of_turn(self._last[system.name], system.stride)
        try:
            answer = self._fleet.turn(system, warmup, steps)
        except Failed as e:
            self.errors[system.name] = str(e)
            self._say(f"{system.name} failed: {e}")
            return
        step = step_time(answer)
        self._last[system.name] = step
        if not probe:
            self.done.setdefault(system.name, []).append({"step": step, **answer})
        name = "probe" if probe else f"round {number}"
        self._say(f"{name}: {system.name}: {1e3 * step:,.0f} ms a step ({steps} steps)")

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} [{self._place}] {text}", flush=True)


def run(place: str, fleet: Fleet, systems: Sequence[System], length: Length) -> list[dict]:
    """One turn of each system that does not count, then `length.rounds` that do.

    Args:
      place: what is measured, for the lines that say how far it is.
      fleet: the processes.
      systems: take turns, in this order. A system that fails has no more turns.
      length: of the turns.

    Returns:
      `report.result` of each system.
    """
    turns = _Turns(place, fleet, length)
    for number in range(length.rounds + 1):
        for system in systems:
            if system.name not in turns.errors:
                turns.take(system, number)
    return [report.result(s, turns.done.get(s.name, []), turns.errors.get(s.name)) for s in systems]
