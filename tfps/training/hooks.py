"""Keras callbacks, and the chief's copy of the model around their hooks.

While `fit` runs, the truth is on the servers. A hook may look at the model and its optimizer, and
may change them. The copy brings what a hook looks at; what a hook has changed is taken to the
servers after it. No hook of `fit` is called from anywhere else.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps import _keras_models, _keras_variables as contents
from tfps.store.model_copy import ModelCopy
from tfps.training import callbacks as traits
from tfps.training.board import Board
from tfps.training.hook_calls import HookCalls
from tfps.training.noted_rates import NotedRates


class Place(NamedTuple):
    """Which hooks have been called last.

    Attributes:
      epoch: index of the epoch.
      begun, ended: index of the batch.
    """

    epoch: int
    begun: int = -1
    ended: int = -1


_NOWHERE = Place(-1)


class Hooks:
    """The hooks of training, in the order in which Keras calls them.

    Attributes:
      callbacks: the Keras callbacks.
      watches_batches: whether any callback has a hook for batches.
    """

    def __init__(self, callbacks: keras.callbacks.CallbackList, copy: Callable[[], ModelCopy]):
        """Notes the callbacks; what they look at is asked at the start of each epoch.

        Args:
          callbacks: of the run.
          copy: gives the copy of what is on the servers. It may be another copy after
            `train_begin`, and nothing else here keeps it alive.
        """
        self.callbacks = callbacks
        self._current_copy = copy
        self._board = Board(callbacks)
        self.watches_batches = self._secretly = self._secretly_in_batches = False
        self._has_captured = False
        self._now = self._called = _NOWHERE
        self._over = -1  # index of the last epoch whose hooks have all been called
        self._calls = HookCalls(callbacks)
        self._known: dict[str, int] = {}  # how many logs the history had before an epoch's
        self._rates = NotedRates()
        self._stops: Place | None = None  # where training stopped before it went back

    @property
    def _copy(self) -> ModelCopy:
        return self._current_copy()

    def train_begin(self) -> None:
        """Before the first epoch."""
        self._ask()
        for callback in self.callbacks.callbacks:
            traits.warn_of_rows(callback, self.callbacks.model)
        with self._copy.hook(whole=self._secretly):
            self.callbacks.on_train_begin()

    def resume(self, batch_hooks: int) -> None:
        """Lets callbacks of Keras that count batches go on where a run before was cut off.

        Args:
          batch_hooks: how often hooks before batches were called by then.
        """
        for callback in self.callbacks.callbacks:
            if isinstance(callback, keras.callbacks.TensorBoard):
                _keras_models.skip_batches(callback, batch_hooks)

    def go_back(self) -> None:
        """Training goes back to an earlier cut; hooks that were called are not called again."""
        model, now = self.callbacks.model, self._now
        if now.epoch == self._called.epoch:
            begun, ended = max(now.begun, self._called.begun), max(now.ended, self._called.ended)
            self._called = Place(now.epoch, begun, ended)
        self._called = max(self._called, now)
        if model.stop_training:
            # It has to come to where it was before it may stop.
            at_end = self._over >= now.epoch or self._calls.is_open("epoch ends", now.epoch)
            self._stops, model.stop_training = Place(now.epoch + 1) if at_end else now, False

    def was_called(self, epoch: int) -> bool:
        """Whether all hooks of an epoch, which is trained on again, have been called."""
        return epoch <= self._over

    def epoch_begin(self, epoch: int) -> None:
        """Before the first batch of an epoch."""
        self._ask()
        if epoch <= self._called.epoch and not self._calls.is_open("epoch begins", epoch):
            self._now = Place(epoch)
            return
        if self._secretly and not self._has_captured:
            self._copy.capture(contents.captured)
            self._has_captured = True
        with self._copy.hook(whole=self._secretly):
            # What asks the servers before a hook may fail, and then the hook was not called.
            self._now = Place(epoch)
            self._calls.call("epoch begins", epoch, lambda: self.callbacks.on_epoch_begin(epoch))
        self._calls.end("epoch begins", epoch)
        self._note_held()  # The hook may have got hold of more.

    def _ask(self) -> None:
        """Asks the callbacks what they look at."""
        every = self.callbacks.callbacks
        secret = [c for c in every if traits.may_look_secretly(c)]
        self.watches_batches = any(map(traits.has_batch_hooks, every))
        self._secretly, self._secretly_in_batches = (
            bool(secret),
            any(map(traits.has_batch_hooks, secret)),
        )
        self._note_held()

    def _note_held(self) -> None:
        """Notes the variables that callbacks may look at through a `tf.Variable` that they hold."""
        if self._secretly:
            self._copy.capture(contents.held, slots=True)

    def batch_begin(self, batch: int) -> None:
        """Before the first batch of some work; `batch` is its index."""
        now = self._now._replace(begun=batch)
        if now[:2] <= self._called[:2]:
            self._now = now
            self._rates.set_again(("begins", now.epoch, batch), self._optimizer)
            return
        with self._copy.hook(captured=self._secretly_in_batches):
            self._now = now
            self.callbacks.on_train_batch_begin(batch)
            self._rates.note(("begins", now.epoch, batch), self._optimizer)

    def batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """After some work; `batch` is the index of the last batch that is done."""
        now = self._now._replace(ended=batch)
        if (now.epoch, batch) <= (self._called.epoch, self._called.ended):
            self._now = now
            self._rates.set_again(("ends", now.epoch, batch), self._optimizer)
            self._stop_again(now)
            return
        with self._copy.hook(captured=self._secretly_in_batches):
            self._now = now
            self.callbacks.on_train_batch_end(batch, logs)
            self._rates.note(("ends", now.epoch, batch), self._optimizer)
        self._stop_again(now)

    @property
    def _optimizer(self) -> Any:
        return getattr(self.callbacks.model, "optimizer", None)

    def epoch_end(
        self,
        epoch: int,
        logs: dict[str, Any],
        stats: dict[str, float],
        staleness: Any,
        lines: Sequence[str] = (),
    ) -> dict[str, Any]:
        """After an epoch and its validation.

        Args:
          epoch: index.
          logs: of the epoch.
          stats: of the epoch; see `Trainer.stats`.
          staleness: float64 [n], pushes by the number of updates that they missed.
          lines: what was lost and came back, in words.

        Returns:
          The logs as the history has them, with what callbacks have added.
        """
        history = getattr(self.callbacks.model, "history", None)
        if not self._calls.is_open("epoch ends", epoch):
            recorded = history.history.items() if history else ()
            self._known = {name: len(values) for name, values in recorded}
        # Keras 3.15's TensorBoard(update_freq=n) would write an epoch's summaries only after a
        # multiple of n batches.
        with self._copy.hook(whole=self._secretly), tf.summary.record_if(True):
            self._calls.call("epoch ends", epoch, lambda: self.callbacks.on_epoch_end(epoch, logs))
        self._calls.end("epoch ends", epoch)
        self._board.write(epoch, stats, staleness, lines)
        self.epoch_over(epoch)
        recorded = history.history.items() if history else ()
        return {name: v[-1] for name, v in recorded if len(v) > self._known.get(name, 0)} or logs

    def epoch_over(self, epoch: int) -> None:
        """Notes that an epoch is over whose hooks have all been called, now or before."""
        self._over = max(self._over, epoch)
        self._stop_again(Place(epoch + 1))

    def stop_at(self, epoch: int) -> bool:
        """Whether training was stopped before an epoch, from which it is to go on."""
        self._stop_again(Place(epoch))
        return self.callbacks.model.stop_training

    def _stop_again(self, now: Place) -> None:
        """Stops training where it was stopped before it went back."""
        # Other batches may have begun by then than before.
        stops = self._stops
        if stops is not None and (now.epoch, now.ended) >= (stops.epoch, stops.ended):
            self.callbacks.model.stop_training, self._stops = True, None

    def train_end(self, logs: dict[str, Any] | None) -> None:
        """After the last epoch, when the variables do not follow the servers any more."""
        self.callbacks.on_train_end(logs)

    def close(self) -> None:
        """Closes what was opened for the epochs, after an error too."""
        self._board.close()
