"""What a training run prints."""

import math
import sys
import time
from typing import TextIO

import keras


class Progress(keras.callbacks.Callback):
    """A bar with loss, tokens/s and time left; perplexity and bits per byte after each epoch.

    On a terminal the bar is drawn in place. In a file or a pipe, a line is printed every 15 s.
    """

    _BAR = 24  # characters

    def __init__(self, tokens_per_step: int, bytes_per_token: float, out: TextIO = sys.stdout):
        """Makes the callback.

        Args:
          tokens_per_step: number of tokens in a batch.
          bytes_per_token: mean number of bytes of a token of the validation text.
          out: the text stream to print to.
        """
        super().__init__()
        self._tokens_per_step = tokens_per_step
        self._bytes_per_token = bytes_per_token
        self._out = out
        self._tty = out.isatty()
        self._interval = 0.2 if self._tty else 15.0  # s between two prints

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        self._started = self._printed = time.perf_counter()
        self._first = None

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now = time.perf_counter()
        if self._first is None:
            # The first steps include the time to compile them, so speed is measured from here.
            self._first = (batch, now)
        # With several steps in a call, Keras counts the last call of an epoch in full.
        done = min(batch + 1, self.params["steps"])
        if now - self._printed < self._interval and done < self.params["steps"]:
            return
        self._printed = now
        line = self._line(done, now, logs or {})
        self._out.write(f"\r{line}\x1b[K" if self._tty else f"{line}\n")
        self._out.flush()

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
            text += f"  {self._tokens_per_step / seconds:,.0f} tokens/s  {_duration(left)} left"
        return text

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._tty:
            self._out.write("\n")
        loss = (logs or {}).get("val_loss")
        if loss is None:
            return
        self._out.write(
            f"  validation: perplexity {perplexity(loss):.2f}, "
            f"{bits_per_byte(loss, self._bytes_per_token):.3f} bits per byte  "
            f"(epoch took {_duration(time.perf_counter() - self._started)})\n"
        )
        self._out.flush()


def perplexity(loss: float) -> float:
    """exp of the mean loss, which is in nats per token."""
    return math.exp(min(loss, 100.0))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Converts the mean loss in nats per token to bits per byte of the text."""
    return loss / math.log(2) / bytes_per_token


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
