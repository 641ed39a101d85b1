"""A dataset that is made on a worker, and made again on another one, at any batch of any pass."""

import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf

from tfps import _tf_data, errors
from tfps._tf_shuffles import Shuffled, draws_within_a_pass
from tfps.cluster.devices import worker_device
from tfps.model.batches import without_optionals
from tfps.training.cautions import warn_of
from tfps.training.feeds import Opener

UNKNOWN = tf.data.UNKNOWN_CARDINALITY

# The user's function, and the seeds that it draws, are one thread's at a time.
_making = threading.Lock()


class RemoteDataset:
    """A dataset on a worker, whose iterators are made in the order of its passes.

    What a dataset draws anew for each pass, such as the order of a shuffle, follows from the number
    of iterators that it has had. So a dataset that has had too many is made again, and one that has
    had too few is given others.

    Attributes:
      length: how many batches a pass has, or a negative number: no end, not known, or not made yet.
    """

    def __init__(self, make: Callable[[], tf.data.Dataset], worker: int):
        """Makes nothing yet.

        Args:
          make: makes the dataset, always the same; called under the worker's device.
          worker: index.
        """
        self._make, self.worker = make, worker
        self._dataset: tf.data.Dataset | None = None
        self._iterators = 0  # how many the dataset has had
        # A dataset of which drawing alone does not repeat a pass; false if it is none, None if
        # that is not known yet.
        self._begins_anew: Shuffled | Literal[False] | None = None
        self.length = UNKNOWN

    def dataset(self) -> tf.data.Dataset:
        """Returns the dataset, made when it is first asked for."""
        if self._dataset is None:
            with _making, input_device(self.worker):
                self._dataset, self._iterators = self._make(), 0
                self.length = _tf_data.length_of(self._dataset)
        return self._dataset

    def iterator(self, turn: int, begin: int) -> tf.data.Iterator:
        """An iterator over a pass from some batch on.

        Args:
          turn: number of the pass.
          begin: number of the batch.
        """
        if self._iterators > turn and not self._begins_anew:
            self._dataset = None
        dataset = self.dataset()
        with input_device(self.worker):
            if self._begins_anew is None:
                # An endless pass is the only one, and is the same whenever it is begun.
                endless = self.length == tf.data.INFINITE_CARDINALITY
                self._begins_anew = not endless and self._shuffled(dataset)
            if self._begins_anew:
                copy = self._begins_anew.at(turn)
                return iter(_tf_data.skipping(copy, begin) if begin else copy)
            while self._iterators < turn:
                iter(dataset)
                self._iterators += 1
            self._iterators += 1
            return iter(_tf_data.skipping(dataset, begin) if begin else dataset)

    @staticmethod
    def _shuffled(dataset: tf.data.Dataset) -> "Shuffled | Literal[False]":
        if not draws_within_a_pass(dataset):
            return False
        shuffled = Shuffled(dataset, 0)
        if not shuffled.begins_anew or shuffled.why_not:
            warnings.warn(
                "The order in which a worker's dataset shuffles cannot be repeated "
                f"({shuffled.why_not or 'nothing of it can be copied'}), so in a pass that a loss "
                "interrupts, some examples are trained on twice and others not at all; leave out "
                "repeat(), with which epochs do the same, or shuffle after it",
                stacklevel=2,
            )
            return False
        return shuffled


class Stream(Opener):
    """An iterator over a pass, made when it is first read.

    Attributes:
      turn: number of the pass.
      at: number of the batch with which the next work begins.
    """

    def __init__(self, remote: RemoteDataset, turn: int, at: int):
        """Makes nothing yet.

        Args:
          remote: to be iterated over.
          turn: number of the pass.
          at: number of the first batch.
        """
        self._remote, self.turn, self.at = remote, turn, at
        self._begin = at
        self._iterator: Any = None

    def open(self) -> tf.data.Iterator:
        """See `feeds.Opener`."""
        if self._iterator is None:
            self._iterator = self._remote.iterator(self.turn, self._begin)
        return self._iterator


def sample_of(make: Callable[[], tf.data.Dataset], worker: int) -> Any:
    """The first batch of a dataset, in this process; None if it has none.

    Args:
      make: see `RemoteDataset`.
      worker: index of the worker on which to read.
    """
    iterator = RemoteDataset(make, worker).iterator(0, 0)
    with input_device(worker):
        element = iterator.get_next_as_optional()
        batch = element.get_value() if element.has_value() else None
    with tf.device("CPU:0"):
        return tf.nest.map_structure(
            lambda t: tf.identity(t), without_optionals(batch), expand_composites=True
        )


def require_repeatable(make: Callable[[], tf.data.Dataset], worker: int, name: str) -> None:
    """Refuses a dataset that has other batches when it is made again, and warns of other doubts.

    The first two batches are read, twice.

    Args:
      make: see `RemoteDataset`.
      worker: index of the worker on which to read.
      name: of the user's function, and what it was called for.

    Raises:
      DataError: the batches differ.
    """
    if _beginning(make, worker) != _beginning(make, worker):
        raise errors.DataError(
            f"{name} makes a dataset that has other batches when it is made again, so what is lost "
            "with a worker could not be repeated; give what draws random numbers a seed, and leave "
            'out deterministic=False, or give Trainer(data="at_least_once")'
        )
    warn_of(RemoteDataset(make, worker).dataset(), f"The dataset of {name}")


def _beginning(make: Callable[[], tf.data.Dataset], worker: int) -> list[bytes]:
    """The first two batches, as bytes."""
    iterator, found = RemoteDataset(make, worker).iterator(0, 0), []
    with input_device(worker):
        for _ in range(2):
            element = iterator.get_next_as_optional()
            if not element.has_value():
                break
            found += tf.nest.flatten(element.get_value(), expand_composites=True)
    return [pickle.dumps(tensor.numpy()) for tensor in found]


def input_device(worker: int) -> Any:
    """The device on which a worker reads its input, as a context."""
    return tf.device(f"{worker_device(worker)}/device:CPU:0")
