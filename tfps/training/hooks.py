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

    @property
    def _copy(self) -> ModelCopy:
        return self._current_copy()

    def train_begin(self) -> None:
        """Before the first epoch."""
        self._ask()
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
        self._called = max(self._called, self._now)

    def was_called(self, epoch: int) -> bool:
        """Whether all hooks of an epoch, which is trained on again, have been called."""
        return epoch < self._called.epoch

    def epoch_begin(self, epoch: int) -> None:
        """Before the first batch of an epoch."""
        self._ask()
        self._now = Place(epoch)
        if epoch <= self._called.epoch:
            return
        if self._secretly and not self._has_captured:
            self._copy.capture(contents.captured)
            self._has_captured = True
        with self._copy.hook(whole=self._secretly):
            self.callbacks.on_epoch_begin(epoch)
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
        self._now = self._now._replace(begun=batch)
        if self._now[:2] <= self._called[:2]:
            return
        with self._copy.hook(captured=self._secretly_in_batches):
            self.callbacks.on_train_batch_begin(batch)

    def batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """After some work; `batch` is the index of the last batch that is done."""
        self._now = self._now._replace(ended=batch)
        if (self._now.epoch, batch) <= (self._called.epoch, self._called.ended):
            return
        with self._copy.hook(captured=self._secretly_in_batches):
            self.callbacks.on_train_batch_end(batch, logs)

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
        before = {name: len(values) for name, values in history.history.items()} if history else {}
        # Keras 3.15's TensorBoard(update_freq=n) would write an epoch's summaries only after a
        # multiple of n batches.
        with self._copy.hook(whole=self._secretly), tf.summary.record_if(True):
            self.callbacks.on_epoch_end(epoch, logs)
        self._board.write(epoch, stats, staleness, lines)
        recorded = history.history.items() if history else ()
        return {name: v[-1] for name, v in recorded if len(v) > before.get(name, 0)} or logs

    def train_end(self, logs: dict[str, Any] | None) -> None:
        """After the last epoch, when the variables do not follow the servers any more."""
        self.callbacks.on_train_end(logs)

    def close(self) -> None:
        """Closes what was opened for the epochs, after an error too."""
        self._board.close()
