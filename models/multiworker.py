"""The training loop of `MultiWorkerMirroredStrategy` for Keras 3 models.

Keras 3's own `fit` does not work under this strategy: it averages the logs of every step over an
axis that scalars do not have. This loop calls the model's `train_step` in each replica; the
optimizer in it adds up the gradients of all replicas.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from models import _keras
from tfps import errors

Limit = Callable[[str], contextlib.AbstractContextManager]


class Trainer:
    """Trains a compiled Keras model by all-reduce; every worker calls the same methods.

    Attributes:
      model: the model, made and compiled in the strategy's scope.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        limit: Limit = contextlib.nullcontext,
    ):
        """Prepares training; no variable is made yet.

        Args:
          model: made and compiled in the scope of `strategy`.
          strategy: a `MultiWorkerMirroredStrategy`.
          limit: makes the context in which each call runs that waits for other workers, from a
            text that says what is waited for. The context may end the program after some time.
        """
        self.model = model
        self._strategy = strategy
        self._limit = limit
        self._train = self._several(lambda batch: model.train_step(batch))
        self._test = self._several(lambda batch: model.test_step(batch))

    def fit(
        self,
        x: tf.data.Dataset,
        *,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        validation_data: tf.data.Dataset | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
    ) -> keras.callbacks.History:
        """Trains, with the meanings of `keras.Model.fit`.

        Args:
          x: global batches, the same on all workers; each batch is split over all replicas.
          epochs: number of epochs.
          steps_per_epoch: number of global batches in an epoch; the dataset is repeated as needed.
            By default an epoch is the dataset once.
          validation_data: global batches that are evaluated after each epoch.
          callbacks: run on each worker, with the logs of all workers together. When a callback sets
            `stop_training` in a hook of a batch, all workers stop after one call more, because the
            others learn of it in that call.
          verbose: as in Keras; 0 prints nothing.

        Returns:
          Keras's history.

        Raises:
          DataError: the number of steps is not given, and the dataset does not know its size.
        """
        model = self.model
        steps = steps_per_epoch or _size(x, "steps_per_epoch")
        self._build(x)
        batches = iter(self._distributed(x.repeat()))
        hooks = keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            model=model,
            verbose=verbose,
            epochs=epochs,
            steps=steps,
        )
        model.stop_training = False
        logs: dict[str, float] = {}
        hooks.on_train_begin()
        for epoch in range(epochs):
            hooks.on_epoch_begin(epoch)
            logs = self._epoch(batches, steps, hooks)
            if validation_data is not None:
                found = self.evaluate(validation_data, hooks)
                logs |= {f"val_{name}": value for name, value in found.items()}
            hooks.on_epoch_end(epoch, logs)
            if self._someone_stops():
                break
        model.optimizer.finalize_variable_values(model.trainable_variables)
        hooks.on_train_end(logs)
        return model.history

    def evaluate(
        self, x: tf.data.Dataset, callbacks: keras.callbacks.CallbackList | None = None
    ) -> dict[str, float]:
        """Computes loss and metrics over a dataset.

        Args:
          x: global batches, the same on all workers.
          callbacks: whose hooks of tests run.

        Returns:
          Loss and metrics by name, over the batches of all workers.

        Raises:
          DataError: the dataset does not know its size.
        """
        steps = _size(x, "a dataset with a known size")
        self._build(x)
        hooks = callbacks or keras.callbacks.CallbackList(model=self.model, steps=steps)
        batches = iter(self._distributed(x))
        self.model.reset_metrics()
        hooks.on_test_begin()
        logs: dict[str, float] = {}
        for first, count in self._calls(steps):
            hooks.on_test_batch_begin(first)
            with self._limit(f"to an evaluation's step {first}"):
                logs = _numbers(self._test(batches, count, 0)[0])
            hooks.on_test_batch_end(first + count - 1, logs)
        hooks.on_test_end(logs)
        return logs

    def _epoch(
        self, batches: Any, steps: int, hooks: keras.callbacks.CallbackList
    ) -> dict[str, float]:
        model = self.model
        model.reset_metrics()
        logs: dict[str, float] = {}
        for first, count in self._calls(steps):
            hooks.on_train_batch_begin(first)
            with self._limit(f"to step {first} of an epoch"):
                found, stops = self._train(batches, count, int(model.stop_training))
                logs = _numbers(found)
            hooks.on_train_batch_end(first + count - 1, logs)
            if int(stops):
                model.stop_training = True
                break
        return logs

    def _calls(self, steps: int) -> list[tuple[int, int]]:
        """The calls of an epoch: (number of the first step, number of steps)."""
        together = self.model.steps_per_execution
        return [(first, min(together, steps - first)) for first in range(0, steps, together)]

    def _several(self, step: Callable) -> Callable:
        """Makes `(iterator, steps, stop) -> (logs, stops)` from what a replica does with a batch.

        `stops` is the number of workers whose `stop` was 1.
        """
        strategy, model = self._strategy, self.model

        @tf.function(autograph=False, reduce_retracing=True)
        def call(iterator, steps, stop):
            def one(i):
                strategy.run(step, args=(next(iterator),))
                return [i + 1]

            tf.while_loop(lambda i: i < steps, one, [0])
            return model.get_metrics_result(), strategy.reduce("SUM", stop, axis=None)

        return lambda iterator, steps, stop: call(iterator, tf.constant(steps), tf.constant(stop))

    def _build(self, x: tf.data.Dataset) -> None:
        # The chief sends the initial values to the others, so this waits for all workers.
        with self._strategy.scope(), self._limit("to the initial values of the variables"):
            _keras.build(self.model, x.element_spec)

    def _distributed(self, x: tf.data.Dataset) -> tf.distribute.DistributedDataset:
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return self._strategy.experimental_distribute_dataset(x.with_options(options))

    def _someone_stops(self) -> bool:
        with self._limit("to the end of an epoch"):
            stop = tf.constant(int(self.model.stop_training))
            return bool(self._strategy.reduce("SUM", stop, axis=None))


def _size(x: tf.data.Dataset, remedy: str) -> int:
    size = int(x.cardinality())
    if size < 0:
        raise errors.DataError(
            f"the dataset has {'no end' if size == -1 else 'an unknown size'}; give {remedy}"
        )
    return size


def _numbers(logs: dict[str, tf.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items()}
