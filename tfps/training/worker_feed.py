"""Input that the workers read: a `dataset_fn` makes a dataset for each worker."""

import math
from collections.abc import Callable

import tensorflow as tf

from tfps import _tf_data, errors
from tfps.cluster.devices import worker_device
from tfps.model.batches import without_optionals
from tfps.training.context import Context
from tfps.training.feeds import FeedPosition, Work


class WorkerFeed:
    """Datasets that live on the workers; see `feeds.Feed` for attributes and methods."""

    def __init__(
        self,
        dataset_fn: Callable[[Context], tf.data.Dataset],
        num_workers: int,
        steps_per_epoch: int | None = None,
        steps_per_execution: int = 1,
    ):
        """Calls `dataset_fn` once for each worker, under its device.

        Args:
          dataset_fn: what the user gave as `x`.
          num_workers: of the cluster.
          steps_per_epoch: batches in an epoch, of all workers together. Datasets that end are begun
            again. None makes an epoch one pass over each dataset.
          steps_per_execution: batches in a call at most.

        Raises:
          DataError: it returned something that is not a `tf.data.Dataset`.
        """
        self._steps = steps_per_epoch
        self.group = steps_per_execution
        self._datasets = []
        # How many batches a pass has, or a negative number: there is no end, or nobody knows.
        self._lengths: list[int] = []
        for w in range(num_workers):
            with _input_device(w):
                dataset = dataset_fn(Context(w, num_workers))
            if not isinstance(dataset, tf.data.Dataset):
                raise errors.DataError(
                    f"dataset_fn returned {type(dataset).__name__} for worker {w}; it must return "
                    "a tf.data.Dataset of batches"
                )
            self._lengths.append(_tf_data.length_of(dataset))
            self._datasets.append(dataset)
        self._iterators: list = [None] * num_workers
        self._ended = [True] * num_workers
        self._used = [0] * num_workers  # batches of each worker's present pass
        self.num_batches = steps_per_epoch
        self.batch_spec = without_optionals(self._datasets[0].element_spec)
        self.source_spec = self._iterator(0)

    def regroup(self, group: int, alike: bool = False) -> None:
        """See `feeds.Feed`; batches that workers read may differ in shape."""
        del alike
        self.group = group

    def reset(self) -> None:
        """See `feeds.Feed`."""
        self._ended = [True] * len(self._datasets)

    def begin_epoch(self) -> None:
        """See `feeds.Feed`; with `steps_per_epoch`, the passes of the last epoch go on."""
        if self._steps is None:
            for w in range(len(self._datasets)):
                self._restart(w)
        self._left = self._steps or math.inf
        self._fruitless = [0] * len(self._datasets)

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """See `feeds.WorkSource`; the source is the worker's iterator."""
        if self._left <= 0:
            return None
        if self._ended[worker]:
            if self._steps is None or self._fruitless[worker] > 1:
                return None
            self._restart(worker)
        count = int(min(self.group, self._left, most))
        self._left -= count
        length = self._lengths[worker]
        known = length >= self._used[worker] + count
        is_sure = length == tf.data.INFINITE_CARDINALITY or known
        return Work(self._iterators[worker], count, is_sure)

    def done(self, worker: int, work: Work, steps: int) -> None:
        """See `feeds.WorkSource`; batches that the worker's dataset did not have are dealt anew."""
        self._left += work.count - steps
        self._used[worker] += steps
        self._fruitless[worker] = 0 if steps else self._fruitless[worker] + 1
        if steps < work.count:
            self._ended[worker] = True

    def end_epoch(self) -> None:
        """See `feeds.Feed`."""

    def position(self) -> FeedPosition:
        """See `feeds.Feed`."""
        goes_on = [self._steps is not None and not ended for ended in self._ended]
        pairs = zip(self._used, goes_on, strict=True)
        return FeedPosition(tuple(used if on else 0 for used, on in pairs))

    def seek(self, position: FeedPosition) -> None:
        """See `feeds.Feed`."""
        if len(position.batches) != len(self._datasets):
            raise errors.DataError(
                f"the position is of {len(position.batches)} dataset(s), but there are "
                f"{len(self._datasets)} workers; go on with as many workers as before"
            )
        for w, batches in enumerate(position.batches):
            if batches:
                self._restart(w, batches)
            else:
                self._ended[w] = True

    def _restart(self, worker: int, skip: int = 0) -> None:
        self._iterators[worker] = self._iterator(worker, skip)
        self._ended[worker] = False
        self._used[worker] = skip

    def _iterator(self, worker: int, skip: int = 0):
        with _input_device(worker):
            dataset = self._datasets[worker]
            return iter(_tf_data.skipping(dataset, skip) if skip else dataset)


def _input_device(worker: int):
    return tf.device(f"{worker_device(worker)}/device:CPU:0")
