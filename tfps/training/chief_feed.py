"""Input that the chief reads: it deals out the batches, each to one worker."""

import _thread
import math
import sys
import warnings
from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_models, _tf_data, errors
from tfps.model.batches import without_optionals
from tfps.training.feeds import FeedPosition, Work, shapes_of
from tfps.worker.batch_loop import Stack


class ChiefFeed:
    """Batches that the chief reads and deals out; see `feeds.Feed` for attributes and methods."""

    def __init__(
        self, *, steps_per_epoch: int | None = None, steps_per_execution: int = 1, **data: Any
    ):
        """Adapts what `keras.Model.fit` takes.

        Args:
          steps_per_epoch: batches in an epoch; None for the whole input. As in Keras, an epoch has
            whole calls, and so up to `steps_per_execution - 1` batches more.
          steps_per_execution: batches in a call at most.
          **data: x, y, sample_weight, batch_size, shuffle, class_weight.
        """
        if isinstance(data["x"], tf.data.Dataset):
            data["shuffle"] = False  # Keras would warn that a dataset shuffles itself.
        epochs = _keras_models.EpochIterator(steps_per_epoch=steps_per_epoch, **data)
        self._adapter = epochs.data_adapter
        self._dataset = self._adapter.get_tf_dataset()
        self._steps = epochs.steps_per_epoch
        self.num_batches = epochs.num_batches
        calls = math.inf if not self.num_batches else -(-self.num_batches // steps_per_execution)
        self._most = calls * steps_per_execution
        self.batch_spec = without_optionals(self._dataset.element_spec)
        flat = tf.nest.flatten(self.batch_spec)
        self._is_plain = all(isinstance(s, tf.TensorSpec) for s in flat)
        self._stackable = all(s is None or isinstance(s, tf.TensorSpec) for s in flat)
        self.regroup(steps_per_execution)
        self._pass: _Pass | None = None
        self._used = 0  # batches of the present pass
        self._skip = 0  # batches to leave out of the next pass

    def regroup(self, group: int, alike: bool = False) -> None:
        """See `feeds.Feed`; batches that are more than tensors do not come in groups."""
        self._alike = alike
        self.group = group if self._stackable else 1
        self.source_spec = _stacked(self.batch_spec) if self.group > 1 else self.batch_spec

    def reset(self) -> None:
        """See `feeds.Feed`."""
        self._pass, self._skip = None, 0

    def begin_epoch(self) -> None:
        """See `feeds.Feed`; with `steps_per_epoch`, the pass of the last epoch goes on."""
        self._adapter.on_epoch_begin()
        if self._steps is None or self._pass is None:
            self._begin_pass()
        self._left = self._most
        self._taken = 0
        self._ahead = None

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """See `feeds.WorkSource`."""
        del worker
        parts: list[Work] = []
        wanted = min(self.group, self._left, most)
        # The end of the input sets what is left of `steps_per_epoch` to 0.
        while min(wanted, self._left) > 0 and (batches := self._take_alike(wanted)):
            if self.group == 1:
                parts.append(Work(batches[0], 1, is_sure=True))
            else:
                stack = Stack(keras.tree.map_structure(_stack, *batches))
                parts.append(Work(stack, len(batches), is_sure=True))
            wanted -= len(batches)
            if self._alike:
                break
        count = sum(part.count for part in parts)
        self._left -= count
        if len(parts) > 1:
            return Work(None, count, is_sure=True, parts=tuple(parts))
        return parts[0] if parts else None

    def _take_alike(self, most: float) -> list[Any]:
        """The next batches of the same shape; empty at the end of the epoch."""
        batches: list[Any] = []
        while len(batches) < most:
            batch = self._ahead if self._ahead is not None else self._next()
            self._ahead = None
            if batch is None:
                break
            if batches and shapes_of(batch) != shapes_of(batches[0]):
                self._ahead = batch
                break
            batches.append(batch)
        return batches

    def done(self, worker: int, work: Work, steps: int) -> None:
        """See `feeds.WorkSource`; every batch that was dealt out is used."""

    def end_epoch(self) -> None:
        """See `feeds.Feed`."""
        if self._steps is None and self.num_batches and self._taken >= self.num_batches:
            # Keras 3.15 ends such an epoch with an iterator that it does not use, and the order of
            # a shuffle with a seed depends on how many iterators there were before.
            _Pass(self._dataset)
        self._adapter.on_epoch_end()

    def position(self) -> FeedPosition:
        """See `feeds.Feed`."""
        if self._pass is None:
            return FeedPosition((self._skip,))
        return FeedPosition((self._used if self._steps is not None else 0,))

    def seek(self, position: FeedPosition) -> None:
        """See `feeds.Feed`."""
        if len(position.batches) != 1:
            raise errors.DataError(
                f"the position is of {len(position.batches)} datasets of workers, but this input "
                "is read by the chief; go on with the dataset_fn that the position was taken from"
            )
        self._pass, self._skip = None, position.batches[0]

    def _begin_pass(self) -> None:
        dataset = _tf_data.skipping(self._dataset, self._skip) if self._skip else self._dataset
        self._used, self._skip = self._skip, 0
        try:
            self._pass = _Pass(dataset)
        except tf.errors.InvalidArgumentError as e:
            if "unknown device" not in e.message:
                raise
            raise errors.DataError(
                "the dataset was made before the strategy connected, on a device that connecting "
                "has renamed; make the ParameterServerStrategy first"
            ) from e

    def _next(self) -> Any:
        # With steps_per_epoch, the pass goes on from the last epoch and may have ended just there.
        for _ in range(2):
            assert self._pass is not None
            try:
                element = self._pass.next()
            except EOFError:
                pass
            else:
                self._taken += 1
                self._used += 1
                return element if self._is_plain else without_optionals(element)
            if self._steps is None or self._taken:
                break
            self._begin_pass()
        if self._steps is not None:
            warnings.warn(
                f"The input ended after {self._taken} of steps_per_epoch={self._steps} batches; "
                "repeat the dataset to train longer epochs",
                stacklevel=2,
            )
            self._pass = None
            self._left = 0
        return None


class _Pass:
    """An iterator over a dataset of the chief, which is deleted in a thread of its own.

    Deleting an iterator waits for the thread that tunes its dataset. That thread may just have gone
    to sleep for up to 60 s (TensorFlow 2.21): about once in four passes it misses the request to
    end.
    """

    def __init__(self, dataset: tf.data.Dataset):
        self._own: list = []
        self._own.append(_tf_data.Elements(iter(dataset)))

    def next(self) -> Any:
        """The next element; raises `EOFError` if there is none."""
        return self._own[0].next()

    def __del__(self):
        if self._own and not sys.is_finalizing():
            # The garbage collector may run in a thread that holds the lock of `threading`.
            _thread.start_new_thread(self._own.clear, ())


def _stacked(spec):
    return Stack(
        keras.tree.map_structure(
            lambda s: None if s is None else tf.TensorSpec([None, *s.shape], s.dtype), spec
        )
    )


def _stack(*parts):
    return None if parts[0] is None else tf.stack(parts)
