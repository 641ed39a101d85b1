"""Times a part of Keras's `fit`."""

import time

import keras

from benchmarks.wire import lines


class Clock(keras.callbacks.Callback):
    """Notes when some steps were done."""

    def __init__(self, first: int, last: int):
        """Marks when `first` and `last` steps were done."""
        super().__init__()
        self._ends = (first, last)
        self.marks: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if batch + 1 in self._ends:
            self.marks.append(time.perf_counter())
            lines.mark()


def timed(fit, message: dict) -> dict:
    """Calls `fit(steps_per_epoch=…, callbacks=…, verbose=0)`; returns what the turn's answer needs.

    Args:
      fit: a bound method of a model or trainer, with its data.
      message: the order, with `warmup` and `steps`.
    """
    first = message["warmup"]
    clock = Clock(first, first + message["steps"])
    fit(steps_per_epoch=first + message["steps"], callbacks=[clock], verbose=0)
    return {"seconds": clock.marks[1] - clock.marks[0], "steps": message["steps"]}
