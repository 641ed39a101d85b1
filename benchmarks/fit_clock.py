"""Times a part of Keras's `fit`."""

import time
from collections.abc import Callable
from typing import Any

import keras

from benchmarks.wire import lines


class Clock(keras.callbacks.Callback):
    """Notes the times at which some steps were done, counted over all workers.

    Attributes:
      marks: for each of the two moments, how many steps were done, and the time in seconds.
    """

    def __init__(self, first: int, last: int):
        """Marks when `first` and `last` steps were done."""
        super().__init__()
        self._to_come = [first, last]
        self.marks: list[tuple[int, float]] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Marks the moment if it is one of the two."""
        if self._to_come and batch + 1 >= self._to_come[0]:
            del self._to_come[0]
            self.marks.append((batch + 1, time.perf_counter()))
            lines.mark()


def timed(
    fit: Callable[..., Any], message: dict, workers: int = 1, around: int = 0
) -> dict[str, Any]:
    """Calls `fit(steps_per_epoch=…, callbacks=…, verbose=0)`; returns what the turn's answer needs.

    A clock that ran to the last step would count what was begun before it started and has no
    successor beside it: steps that overlap, or parts of an exchange. So more steps are taken before
    and after: wherever the clock starts and stops, as many are under way.

    Args:
      fit: a method of a model or trainer, with its data.
      message: the order, with `warmup` and `steps` of a worker.
      workers: of how many workers `fit` counts the steps.
      around: how many more steps of a worker are taken before the clock starts and after it stops.
    """
    first = workers * (message["warmup"] + around)
    last = first + workers * message["steps"]
    clock = Clock(first, last)
    fit(steps_per_epoch=last + workers * around, callbacks=[clock], verbose=0)
    (begun, start), (ended, stop) = clock.marks
    return {"seconds": stop - start, "steps": ended - begun}
