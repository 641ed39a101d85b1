"""A dataset that some worker reads, and another one after it: what is dealt from where."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tfps.training.feeds import Work
from tfps.training.passes import Lease, Passes
from tfps.training.worker_dataset import UNKNOWN, RemoteDataset, Stream


class MovableDataset:
    """A dataset on a worker, which other workers can go on with.

    Attributes:
      passes: which of its batches are dealt out and done.
      host: index of the worker that reads it; None as long as nobody does.
    """

    def __init__(self, make: Callable[[], tf.data.Dataset], host: int | None = None):
        """Makes nothing yet.

        Args:
          make: makes the dataset, always the same; called under the device of its host.
          host: index of the worker that reads it, or None.
        """
        self._make = make
        self._length = UNKNOWN
        self._remote: RemoteDataset | None = None
        # Worker -> where it reads what others have lost. Units are lost, and repeated, in rows.
        self._again: dict[int, Stream] = {}
        self.passes = Passes()
        self.move(host)

    def move(self, host: int | None) -> None:
        """Makes another worker read the dataset from now on, or a new process of the same one."""
        self.host = host
        self.drop()
        self._remote = None if host is None else RemoteDataset(self._make, host)

    def drop(self) -> None:
        """Lets go of the iterators, which may be anywhere."""
        self._stream: Stream | None = None
        self._again.clear()

    def lose(self, worker: int) -> None:
        """Notes that a worker has nothing any more of what it was to repeat.

        Args:
          worker: index.
        """
        self._again.pop(worker, None)

    def dataset(self) -> tf.data.Dataset:
        """Returns the dataset on its host, made if it is not there yet."""
        return self._there().dataset()

    @property
    def length(self) -> int:
        """How many batches a pass has, or a negative number: no end, not known or not known yet."""
        if self._length == UNKNOWN and self._remote is not None:
            self._length = self._remote.length
        return self._length

    def deal(self, most: float) -> Work:
        """The next work, of at most `most` batches; the passes are not over."""
        lease = self.passes.deal(most)
        stream = self._stream
        if stream is None or (stream.turn, stream.at) != (lease.turn, lease.begin):
            stream = self._stream = Stream(self._there(), lease.turn, lease.begin)
        stream.at += lease.count
        return self._work(stream, lease)

    def repeat(self, lease: Lease, index: int, worker: int, count: int) -> Work:
        """A work of some batches of a lease, for whatever worker."""
        again, stream = self.passes.repeat(lease, index, count), self._again.get(worker)
        if stream is None or (stream.turn, stream.at) != (again.turn, again.begin):
            remote = RemoteDataset(self._make, worker)
            stream = self._again[worker] = Stream(remote, again.turn, again.begin)
        stream.at += again.count
        return self._work(stream, again)

    def forget(self, stream: Stream) -> None:
        """Notes that a stream may be anywhere."""
        if stream is self._stream:
            self._stream = None
        for worker in [w for w, one in self._again.items() if one is stream]:
            self.lose(worker)

    def _work(self, stream: Stream, lease: Lease) -> Work:
        is_sure = self.length == tf.data.INFINITE_CARDINALITY
        is_sure |= self.length >= lease.begin + lease.count
        return Work(stream, lease.count, is_sure, lease=Leased(self, lease, stream))

    def _there(self) -> RemoteDataset:
        assert self._remote is not None, "no worker reads the dataset"
        return self._remote


@dataclasses.dataclass(frozen=True, eq=False)
class Leased:
    """What a work is of: some batches of a dataset, read from a stream."""

    of: MovableDataset
    lease: Lease
    stream: Stream

    def done(self, steps: int) -> int:
        """Settles the work; returns how many of its batches there were not.

        Args:
          steps: how many there were.
        """
        return self.of.passes.done(self.lease, steps)

    def give_back(self, begin: int) -> int:
        """See `WorkSource.give_back`; returns how many batches are given back."""
        self.of.forget(self.stream)
        return self.of.passes.give_back(self.lease, begin)

    def repeat(self, index: int, worker: int, count: int) -> Work:
        """See `Feed.repeat`."""
        return self.of.repeat(self.lease, index, worker, count)
