"""What a binary needs to know of the way in which it trains: parameter servers or all-reduce."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import keras
import tensorflow as tf

import tfps

DatasetFn = Callable[[tfps.Context], tf.data.Dataset]


class Way(Protocol):
    """A connected way of training.

    Attributes:
      chief: whether this process prints and saves. Others do the same work, but print nothing and
        write to `path(...)`.
      batches_per_step: number of batches that a step of `trainer` takes at once.
    """

    chief: bool
    batches_per_step: int

    def scope(self) -> contextlib.AbstractContextManager:
        """The context in which the model is made and compiled."""
        ...

    def describe(self) -> str:
        """What the model's parameters are on, to follow "100 parameters on"."""
        ...

    def updates(self, steps: int) -> int:
        """How often the optimizer updates in so many steps of `trainer`."""
        ...

    def reading(self, dataset_fn: DatasetFn) -> Any:
        """What `fit` is given so that each process that computes reads its own data, if it can."""
        ...

    def trainer(self, model: keras.Model):
        """An object whose `fit` takes Keras's arguments; `steps_per_epoch` counts its own steps."""
        ...

    def callbacks(self, log_dir: str) -> list[keras.callbacks.Callback]:
        """Callbacks that show something of this way at the start; `log_dir` is TensorBoard's."""
        ...

    def traffic(self, trainer) -> str:
        """A line about what crossed the network in the last epoch, or nothing."""
        ...

    def path(self, path: str) -> str:
        """Where this process writes what the chief writes to `path`."""
        ...
