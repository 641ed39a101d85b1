"""What a training run prints."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import TextIO

import keras


class Progress(keras.callbacks.Callback):
    """A bar with loss, speed and time left; a line of what was validated after each epoch.

    On a terminal the bar is drawn in place. In a file or a pipe, a line is printed every 15 s.
    """

    _BAR = 24  # characters

    def __init__(
        self,
        per_step: int,
        unit: str,
        validated: Callable[[dict], str],
        out: TextIO = sys.stdout,
    ):
        """Makes the callback.

        Args:
          per_step: number of examples, tokens or the like in a batch.
          unit: what they are called, in the plural.
          validated: what to print of the logs of a validation.
          out: the text stream to print to.
        """
        super().__init__()
        self._per_step, self._unit = per_step, unit
        self._validated = validated
        self._out = out
        self._tty = out.isatty()
        self._interval = 0.2 if self._tty else 15.0  # s between two prints
        # Of each epoch: the index of its first batch, that of the batch after its last one, and s
        # from its beginning to the end of its last batch.
        self._epochs: list[tuple[int, int, float]] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        self._started = self._printed = time.perf_counter()
        self._first = None
        self._epochs.append((0, 0, 0.0))

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        _, end, seconds = self._epochs[-1]
        if not end:  # An epoch that goes on from a snapshot does not begin with batch 0.
            self._epochs[-1] = (batch, 0, seconds)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now = time.perf_counter()
        if self._first is None:
            # The first steps include the time to compile them, so speed is measured from here.
            self._first = (batch, now)
        # With several steps in a call, Keras counts the last call of an epoch in full.
        done = min(batch + 1, self.params["steps"])
        self._epochs[-1] = (self._epochs[-1][0], done, now - self._started)
        if now - self._printed < self._interval and done < self.params["steps"]:
            return
        self._printed = now
        line = self._line(done, now, logs or {})
        self._out.write(f"\r{line}\x1b[K" if self._tty else f"{line}\n")
        self._out.flush()

    def per_second(self) -> float:
        """Examples, tokens or the like in a second of training: the median of all epochs.

        The first epoch, in which steps are compiled, counts only if there is no other. NaN if
        nothing was trained, as when `fit` had ended before the program was started again.
        """
        speeds = [(end - first) / seconds for first, end, seconds in self._epochs if end]
        return self._per_step * statistics.median(speeds[1:] or speeds or [math.nan])

    def _line(self, done: int, now: float, logs: dict) -> str:
        steps, epochs = self.params["steps"], self.params["epochs"]
        filled = round(self._BAR * done / steps)
        bar = "━" * filled + "─" * (self._BAR - filled)
        text = (
            f"epoch {self._epoch + 1}/{epochs} {bar} {done:>{len(str(steps))}}/{steps}  "
            f"loss {logs.get('loss', math.nan):.3f}"
        )
        first, since = self._first
        if done - 1 > first:
            seconds = (now - since) / (done - 1 - first)  # a step
            left = seconds * (steps - done + steps * (epochs - self._epoch - 1))
            text += f"  {self._per_step / seconds:,.0f} {self._unit}/s  {_duration(left)} left"
        return text

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._tty:
            self._out.write("\n")
        if "val_loss" not in (logs or {}):
            return
        self._out.write(
            f"  validation: {self._validated(logs)}  "
            f"(epoch took {_duration(time.perf_counter() - self._started)})\n"
        )
        self._out.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
