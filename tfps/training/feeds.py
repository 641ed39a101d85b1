"""Input: who makes the batches, and which worker gets which batch.

Arrays and datasets are read on the chief, and every batch goes to exactly one worker
(`chief_feed.py`). So an epoch means what it means in Keras, however many workers there are. A
`dataset_fn` makes a dataset for each worker, on that worker's machine (`worker_feed.py`), for
input that the chief could not read fast enough.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import keras


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker is to run in one call.

    Attributes:
      source: an iterator on the worker, one batch, or a `Stack` of batches.
      count: how many batches to take from the source at most.
      is_sure: whether the source has so many batches for sure.
      parts: the works that this one consists of, one after the other in the same call, if its
        batches differ in shape; `source` is None then. Otherwise empty.
    """

    source: Any
    count: int
    is_sure: bool = False
    parts: tuple["Work", ...] = ()

    @property
    def takes(self) -> int:
        """How many batches to take from the source at most."""
        return self.count

    @property
    def steps(self) -> Sequence["Work"]:
        """The works without parts, for each of which a step is called once."""
        return self.parts or (self,)


@dataclasses.dataclass(frozen=True)
class WorkAhead:
    """What a worker that holds a batch already is to run in one call.

    Attributes:
      source: of the next batch. If there is no next batch, the last source stands in for it.
      count: how many batches to train on: 1 if the worker holds a batch, else 0.
      following: the work that the next batch is, or None if no batch is to be taken.
    """

    source: Any
    count: int
    following: Work | None

    @property
    def takes(self) -> int:
        """How many batches to take from the source: 1 or 0."""
        return int(self.following is not None)

    @property
    def steps(self) -> Sequence["WorkAhead"]:
        """The work itself, for which a step is called once."""
        return (self,)

    @property
    def is_sure(self) -> bool:
        """Whether there are as many batches to take for sure."""
        return self.following is None or self.following.is_sure


class WorkSource(Protocol):
    """Where the work loop gets the work of a worker from."""

    def take(self, worker: int, most: float = math.inf) -> Any:
        """The worker's next `Work` or `WorkAhead`, or None if there is none until the epoch ends.

        Args:
          worker: index.
          most: how many batches the work may have.
        """

    def done(self, worker: int, work: Any, steps: int) -> None:
        """Notes that the worker has done the work that `take` gave it.

        Args:
          worker: index.
          work: what `take` returned.
          steps: how many batches the worker found in the source.
        """


@dataclasses.dataclass(frozen=True)
class FeedPosition:
    """Where a feed is in its data, at the end of an epoch.

    Attributes:
      batches: how many batches of the present pass over the data have been used: one number for
        input that the chief reads, one for each worker's dataset otherwise. A number of 0 means
        that the next epoch begins with the first batch.
    """

    batches: tuple[int, ...]


class Feed(WorkSource, Protocol):
    """The batches of `fit`, `evaluate` or `predict`.

    The trainer calls `begin_epoch`, then `take` and `done` for each work, and `end_epoch`.

    Attributes:
      batch_spec: nested `tf.TypeSpec`s of a batch; None for a part that is missing.
      source_spec: the form of `Work.source`, to trace a step with.
      num_batches: how many batches an epoch has, or None if that is not known.
      group: how many batches a `Work` has at most.
    """

    batch_spec: Any
    source_spec: Any
    num_batches: int | None
    group: int

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """See `WorkSource`."""

    def regroup(self, group: int, alike: bool = False) -> None:
        """Says of which batches a `Work` may consist, from the next one on.

        Args:
          group: how many at most.
          alike: whether all batches of a work must have the same shape.
        """

    def reset(self) -> None:
        """Makes the next epoch begin with the first batch."""

    def begin_epoch(self) -> None:
        """Makes ready for `take`."""

    def end_epoch(self) -> None:
        """Notes that all batches of the epoch have been used."""

    def position(self) -> FeedPosition:
        """Where the feed is; to be called between epochs."""

    def seek(self, position: FeedPosition) -> None:
        """Goes on from a position of a feed over the same data; to be called between epochs.

        Raises:
          DataError: the position is of a feed with another number of datasets.
        """


def shapes_of(batch: Any) -> Sequence[tuple[int, ...] | None]:
    """The shapes of a batch's tensors, None for a part that is missing."""
    return [None if t is None else tuple(t.shape) for t in keras.tree.flatten(batch)]
