"""Keras callbacks, and the chief's copy of the weights around their hooks.

While `fit` runs, the truth about the weights is on the servers. A hook may look at the model, and
may set weights. So the copy is fetched before a hook that may look, and the servers are filled
again after a hook that has changed the model. No hook of `fit` is called from anywhere else.
"""

from typing import Any

import keras
import tensorflow as tf

from tfps.store.parameter_store import ParameterStore
from tfps.training import callbacks as traits


class Hooks:
    """The hooks of training, in the order in which Keras calls them.

    Attributes:
      callbacks: the Keras callbacks.
      watches_batches: whether any callback has a hook for batches.
    """

    def __init__(self, callbacks: keras.callbacks.CallbackList, store: ParameterStore):
        """Notes the callbacks; what they look at is asked at the start of each epoch.

        Args:
          callbacks: of the run.
          store: with the variables on the servers.
        """
        self.callbacks = callbacks
        self._store = store
        self.watches_batches = self._reads_weights = False

    def train_begin(self) -> None:
        """Before the first epoch."""
        self.callbacks.on_train_begin()
        self._store.load_if_changed()

    def epoch_begin(self, epoch: int) -> None:
        """Before the first batch of an epoch."""
        every = self.callbacks.callbacks
        self.watches_batches = any(map(traits.has_batch_hooks, every))
        self._reads_weights = any(map(traits.reads_weights_in_batches, every))
        self.callbacks.on_epoch_begin(epoch)
        self._store.load_if_changed()

    def batch_begin(self, batch: int) -> None:
        """Before the first batch of some work; `batch` is its index."""
        self.callbacks.on_train_batch_begin(batch)
        if self._reads_weights:
            self._store.load_if_changed()

    def batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """After some work; `batch` is the index of the last batch that is done."""
        if self._reads_weights:
            self._store.fetch()
        self.callbacks.on_train_batch_end(batch, logs)
        if self._reads_weights:
            self._store.load_if_changed()

    def epoch_end(
        self, epoch: int, logs: dict[str, Any], stats: dict[str, float], staleness: Any
    ) -> dict[str, Any]:
        """After an epoch and its validation, when the chief's copy has been fetched.

        Args:
          epoch: index.
          logs: of the epoch.
          stats: of the epoch; see `Trainer.stats`.
          staleness: float64 [n], pushes by the number of updates that they missed.

        Returns:
          The logs as the history has them, with what callbacks have added.
        """
        history = getattr(self.callbacks.model, "history", None)
        before = {name: len(values) for name, values in history.history.items()} if history else {}
        # Keras 3.15's TensorBoard(update_freq=n) would write an epoch's summaries only after a
        # multiple of n batches.
        with tf.summary.record_if(True):
            traits.write_stats(self.callbacks, stats, staleness, epoch)
            self.callbacks.on_epoch_end(epoch, logs)
        self._store.load_if_changed()
        recorded = history.history.items() if history else ()
        return {name: v[-1] for name, v in recorded if len(v) > before.get(name, 0)} or logs

    def train_end(self, logs: dict[str, Any] | None) -> None:
        """After the last epoch."""
        self.callbacks.on_train_end(logs)
