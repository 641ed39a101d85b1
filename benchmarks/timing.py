"""Times a turn of a program that takes its steps one by one, in whatever framework."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.wire import lines


def timed(
    step: Callable[[], Any], message: dict, wait: Callable[[Any], Any] | None = None
) -> dict[str, Any]:
    """Takes the steps of a turn; returns what the turn's answer needs.

    Args:
      step: takes a step.
      message: the order, with `warmup` and `steps`.
      wait: called with what the last step returned, before the clock stops. None if a step is over
        when it returns.
    """
    for _ in range(message["warmup"]):
        step()
    lines.mark()
    start = time.perf_counter()
    for _ in range(message["steps"]):
        last = step()
    if wait is not None:
        wait(last)
    seconds = time.perf_counter() - start
    lines.mark()
    return {"seconds": seconds, "steps": message["steps"]}
