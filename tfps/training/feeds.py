"""Input: who makes the batches, and which worker gets which.

Arrays and datasets are read on the chief and every batch goes to exactly one
worker, so an epoch means what it means in Keras, however many workers there
are. A `dataset_fn` runs once for each worker and makes that worker's own
pipeline, on its machine: the way to go when the chief's would be too slow.
"""

import _thread
import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps import _keras, errors
from tfps.cluster.devices import worker_device
from tfps.worker.batch_loop import Stack


@dataclasses.dataclass(frozen=True)
class Context:
    """Whom a `dataset_fn` makes its dataset for.

    Attributes:
      worker_index: int, from 0 to `num_workers` - 1.
      num_workers: int.
    """

    worker_index: int
    num_workers: int

    def shard(self, items: Sequence) -> list:
        """This worker's share of a sequence such as file names: every n-th item.

        Raises:
          DataError: there are fewer items than workers, so some would have none.
        """
        items = list(items)
        if len(items) < self.num_workers:
            raise errors.DataError(
                f"{len(items)} item(s) to share between {self.num_workers} workers; give at least "
                "one for each, or shard the examples with Dataset.shard"
            )
        return items[self.worker_index :: self.num_workers]


class Work(NamedTuple):
    """What a worker is to run in one call.

    Attributes:
      source: an iterator on the worker, a batch, or a `Stack` of batches.
      count: batches to take from it at most.
    """

    source: Any
    count: int

    @property
    def takes(self) -> int:
        """Batches to take from the source, at most."""
        return self.count


class WorkAhead(NamedTuple):
    """What a worker that holds a batch already is to run in one call.

    Attributes:
      source: of the next batch; without one, the last source stands in for it.
      count: batches that it is to train on: the one that it holds, or 0.
      following: the work that the next batch is; None if there is to be none.
    """

    source: Any
    count: int
    following: Work | None

    @property
    def takes(self) -> int:
        """Batches to take from the source: 1 or 0."""
        return int(self.following is not None)


class ChiefFeed:
    """Batches that the chief reads and deals out, each to one worker.

    Attributes:
      batch_spec: nested `tf.TypeSpec`s of a batch; None where a part is missing.
      source_spec: the form of `Work.source`.
      num_batches: batches in an epoch, or None if unknown.
      group: batches in a `Work` at most.
    """

    def __init__(self, *, steps_per_epoch=None, steps_per_execution: int = 1, **data):
        """Adapts what `keras.Model.fit` takes.

        Args:
          steps_per_epoch: batches in an epoch; by default, the whole input.
          steps_per_execution: batches in a call at most.
          **data: x, y, sample_weight, batch_size, shuffle, class_weight.
        """
        if isinstance(data["x"], tf.data.Dataset):
            data["shuffle"] = False  # Keras would warn that a dataset shuffles itself.
        epochs = _keras.EpochIterator(steps_per_epoch=steps_per_epoch, **data)
        self._adapter = epochs.data_adapter
        self._dataset = self._adapter.get_tf_dataset()
        self._steps = epochs.steps_per_epoch
        self.num_batches = epochs.num_batches
        self.batch_spec = _without_optionals(self._dataset.element_spec)
        flat = tf.nest.flatten(self.batch_spec)
        stackable = all(s is None or isinstance(s, tf.TensorSpec) for s in flat)
        self._stackable = stackable
        self.regroup(steps_per_execution)
        self._iterator = None

    def regroup(self, group: int) -> None:
        """Makes a `Work` one of at most so many batches, from the next one on."""
        self.group = group if self._stackable else 1
        self.source_spec = _stacked(self.batch_spec) if self.group > 1 else self.batch_spec

    def reset(self) -> None:
        """Makes the next epoch begin with the first batch."""
        self._iterator = None

    def begin_epoch(self) -> None:
        self._adapter.on_epoch_begin()
        if self._steps is None or self._iterator is None:
            self._iterator = self._new_iterator()
        self._left = self.num_batches or math.inf
        self._taken = 0
        self._ahead = None

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """The next batches for the worker, alike in shape, or None at the end of the epoch.

        Args:
          worker: index.
          most: batches.
        """
        del worker
        batches = []
        while len(batches) < min(self.group, self._left, most):
            batch = self._ahead if self._ahead is not None else self._next()
            self._ahead = None
            if batch is None:
                break
            if batches and _shapes(batch) != _shapes(batches[0]):
                self._ahead = batch
                break
            batches.append(batch)
        if not batches:
            return None
        self._left -= len(batches)
        if self.group == 1:
            return Work(batches[0], 1)
        return Work(Stack(keras.tree.map_structure(_stack, *batches)), len(batches))

    def done(self, worker: int, work: Work, steps: int) -> None:
        """Notes how many batches of the work were used; here, always all."""

    def end_epoch(self) -> None:
        self._adapter.on_epoch_end()

    def _new_iterator(self) -> "_Pass":
        try:
            return _Pass(self._dataset)
        except tf.errors.InvalidArgumentError as e:
            if "unknown device" not in e.message:
                raise
            raise errors.DataError(
                "the dataset was made before the strategy connected, on a device that connecting "
                "has renamed; make the ParameterServerStrategy first"
            ) from e

    def _next(self):
        # With steps_per_epoch, the pass goes on from the last epoch and may
        # have ended just there.
        for _ in range(2):
            element = self._iterator.next()
            if element.has_value():
                self._taken += 1
                return _without_optionals(element.get_value())
            if self._steps is None or self._taken:
                break
            self._iterator = self._new_iterator()
        if self._steps is not None:
            warnings.warn(
                f"The input ended after {self._taken} of steps_per_epoch={self._steps} batches; "
                "repeat the dataset to train longer epochs",
                stacklevel=2,
            )
            self._iterator = None
            self._left = 0
        return None


class _Pass:
    """An iterator over a dataset of the chief, which ends in a thread of its own.

    An iterator waits for the thread that tunes its dataset, which may just have gone to sleep
    for up to 60 s (TensorFlow 2.21): once in four passes it does not see that it is told to end.
    """

    def __init__(self, dataset: tf.data.Dataset):
        self._own: list = []
        self._own.append(iter(dataset))

    def next(self):
        """An optional: the next element, if there is one."""
        # Python's next() would go through two executors of TensorFlow's.
        return self._own[0].get_next_as_optional()

    def __del__(self):
        if self._own and not sys.is_finalizing():
            # Not `threading`, whose lock the garbage collector may find taken by this very thread.
            _thread.start_new_thread(self._own.clear, ())


class WorkerFeed:
    """Datasets that live on the workers, one each; see `ChiefFeed` for the attributes."""

    def __init__(
        self,
        dataset_fn: Callable[[Context], tf.data.Dataset],
        num_workers: int,
        steps_per_epoch: int | None = None,
        steps_per_execution: int = 1,
    ):
        """Calls `dataset_fn` once for each worker, under its device.

        Raises:
          DataError: it returned something that is not a `tf.data.Dataset`.
        """
        self._steps = steps_per_epoch
        self.group = steps_per_execution
        self._datasets = []
        for w in range(num_workers):
            with _input_device(w):
                dataset = dataset_fn(Context(w, num_workers))
            if not isinstance(dataset, tf.data.Dataset):
                raise errors.DataError(
                    f"dataset_fn returned {type(dataset).__name__} for worker {w}; it must return "
                    "a tf.data.Dataset of batches"
                )
            self._datasets.append(dataset)
        self._iterators: list = [None] * num_workers
        self._ended = [True] * num_workers
        self.num_batches = steps_per_epoch
        self.batch_spec = _without_optionals(self._datasets[0].element_spec)
        self.source_spec = self._iterator(0)

    def regroup(self, group: int) -> None:
        """See `ChiefFeed`."""
        self.group = group

    def reset(self) -> None:
        """Makes the next epoch begin with the first batch of each dataset."""
        self._ended = [True] * len(self._datasets)

    def begin_epoch(self) -> None:
        if self._steps is None:
            self._ended = [True] * len(self._datasets)
            for w in range(len(self._datasets)):
                self._restart(w)
        self._left = self._steps or math.inf
        self._fruitless = [0] * len(self._datasets)

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """The worker's iterator and how many batches to take, or None when there is no more."""
        if self._left <= 0:
            return None
        if self._ended[worker]:
            # Without steps_per_epoch an epoch is one pass over each dataset.
            if self._steps is None or self._fruitless[worker] > 1:
                return None
            self._restart(worker)
        count = int(min(self.group, self._left, most))
        self._left -= count
        return Work(self._iterators[worker], count)

    def done(self, worker: int, work: Work, steps: int) -> None:
        """Notes how many batches of the work the worker's dataset still had."""
        self._left += work.count - steps
        self._fruitless[worker] = 0 if steps else self._fruitless[worker] + 1
        if steps < work.count:
            self._ended[worker] = True

    def end_epoch(self) -> None:
        pass

    def _restart(self, worker: int) -> None:
        self._iterators[worker] = self._iterator(worker)
        self._ended[worker] = False

    def _iterator(self, worker: int):
        with _input_device(worker):
            return iter(self._datasets[worker])


class Lookahead:
    """A feed by which each worker takes its next batch while it trains on the one that it holds."""

    def __init__(self, feed: ChiefFeed | WorkerFeed, num_workers: int, ended: Callable[[], bool]):
        """Keeps its arguments.

        Args:
          feed: of single plain batches; its epoch has begun.
          num_workers: of the cluster.
          ended: true: no further batch is to be taken.
        """
        self._feed = feed
        self._ended = ended
        self._holds = [False] * num_workers
        self._sources: list = [None] * num_workers

    def take(self, worker: int, most: float = math.inf) -> WorkAhead | None:
        """The worker's next call, or None when it holds nothing and there is no more."""
        following = None if self._ended() else self._feed.take(worker, most)
        if following is not None:
            self._sources[worker] = following.source
        elif not self._holds[worker]:
            return None
        return WorkAhead(self._sources[worker], int(self._holds[worker]), following)

    def done(self, worker: int, work: WorkAhead, taken: int) -> None:
        """Notes whether there was a next batch, which the worker holds now."""
        self._holds[worker] = taken > 0
        if work.following is not None:
            self._feed.done(worker, work.following, taken)


def feed(x, num_workers: int, steps_per_epoch, steps_per_execution: int, **data):
    """The feed for whatever the user gave as `x`.

    Raises:
      DataError: a `dataset_fn` together with arguments that belong to arrays.
    """
    if not callable(x):
        return ChiefFeed(
            x=x, steps_per_epoch=steps_per_epoch, steps_per_execution=steps_per_execution, **data
        )
    for name in ("y", "sample_weight", "batch_size", "class_weight"):
        if data.get(name) is not None:
            raise errors.DataError(
                f"{name} was given together with a dataset_fn; its dataset yields whole batches, "
                "put it there"
            )
    return WorkerFeed(x, num_workers, steps_per_epoch, steps_per_execution)


def _input_device(worker: int):
    return tf.device(f"{worker_device(worker)}/device:CPU:0")


def _without_optionals(structure):
    # Keras's adapters put an empty Optional where y or sample_weight is missing.
    optional = (tf.experimental.Optional, tf.OptionalSpec)
    return keras.tree.map_structure(lambda t: None if isinstance(t, optional) else t, structure)


def _stacked(spec):
    return Stack(
        keras.tree.map_structure(
            lambda s: None if s is None else tf.TensorSpec([None, *s.shape], s.dtype), spec
        )
    )


def _stack(*parts):
    return None if parts[0] is None else tf.stack(parts)


def _shapes(batch) -> list:
    return [None if t is None else tuple(t.shape) for t in keras.tree.flatten(batch)]
