"""Input: who makes the batches, and which worker gets which batch.

Arrays and datasets are read on the chief, and every batch goes to exactly one worker
(`chief_feed.py`). So an epoch means what it means in Keras, however many workers there are. A
`dataset_fn` makes a dataset for each worker, on that worker's machine (`worker_feed.py`), for
input that the chief could not read fast enough.

A work that was taken is *settled* by `done`, or by `give_back` if its worker was lost. No batch is
lost with a worker, and none is dealt out twice: what was not trained on is given back, and what
some servers have already is repeated by another worker.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import keras

# Batches of a pass over a dataset: (dataset, pass, index of the first batch, index after the last).
Range = tuple[int, int, int, int]


class Opener(abc.ABC):
    """An input on a worker that is opened when the worker first reads it."""

    @abc.abstractmethod
    def open(self) -> Any:
        """Returns the iterator; called in the thread that calls the worker."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker is to run in one call.

    Attributes:
      origin: the source, or an `Opener` of the iterator that is the source.
      count: how many batches to take from the source at most.
      is_sure: whether the source has so many batches for sure.
      parts: the works that this one consists of, one after the other in the same call, if its
        batches differ in shape; `source` is None then. Otherwise empty.
      lease: what the feed notes of the batches; None for a part, and for a work of no feed.
    """

    origin: Any
    count: int
    is_sure: bool = False
    parts: tuple["Work", ...] = ()
    lease: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def source(self) -> Any:
        """An iterator on the worker, one batch, or a `Stack` of batches.

        An iterator may have to be made first, by calls to the worker. So this is asked for in the
        thread that calls the worker: a worker that does not answer delays nobody else.
        """
        return self.origin.open() if isinstance(self.origin, Opener) else self.origin

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
      last: the last work whose source the worker was given. If there is no next batch, its source
        stands in for that of the next batch.
      held: the work that the batch is which the worker holds and is to train on now, or None.
      following: the work that the next batch is, or None if no batch is to be taken.
    """

    last: Work
    held: Work | None
    following: Work | None

    @property
    def source(self) -> Any:
        """The source of the next batch; see `Work.source`."""
        return self.last.source

    @property
    def count(self) -> int:
        """How many batches to train on: 1 if the worker holds a batch, else 0."""
        return int(self.held is not None)

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
    """Where the work loop gets the work of a worker from.

    Each work that `take` or `repeat` returned is settled once: by `done` if its call returned, by
    `give_back` if the call failed or its worker was lost. These may come in any order.

    Attributes:
      lives: worker -> its life as the source was last told of it, None for one that is lost. The
        work loop keeps it: a source outlives loops, and workers come and go in between.
    """

    lives: dict[int, int | None]

    def take(self, worker: int, most: float = math.inf) -> Any:
        """The worker's next `Work` or `WorkAhead`, or None if there is none for it now.

        There may be work again once a worker has left or some work was given back.

        Args:
          worker: index.
          most: how many batches the work may have.
        """

    def done(self, worker: int, work: Any, steps: int) -> None:
        """Settles a work: the worker has done it.

        Args:
          worker: index.
          work: what `take` or `repeat` returned.
          steps: how many batches the worker found in the source.
        """

    def give_back(self, worker: int, work: Any, begin: int) -> None:
        """Settles a work of which some batches were not trained on at all.

        They are dealt out again, before new batches, to whoever asks next. The batches before
        `begin` count as used: the servers have them, or `repeat` gives them to another worker. To
        give a batch of the same work back twice has no effect. A work that is done may be given
        back afterwards, if its last batches were never pushed.

        Args:
          worker: index of the worker that had the work.
          work: what `take` or `repeat` returned.
          begin: index in the work of the first batch that was not trained on.
        """

    def left(self, worker: int) -> None:
        """Notes that a worker is lost: what only it could read is read by others from now on.

        Args:
          worker: index.
        """

    def back(self, worker: int) -> None:
        """Notes that a lost worker has returned, in a new process that has nothing of the old one.

        Args:
          worker: index.
        """


@dataclasses.dataclass(frozen=True)
class FeedPosition:
    """Where a feed is in its data: which batches have been used.

    A batch is used once its work is settled, unless it was given back.

    Attributes:
      batches: how many batches of the present pass over the data have been used or were left out:
        one number for input that the chief reads, one for each worker's dataset otherwise. All
        numbers are 0 where the next epoch begins with the first batch.
      again: (dataset, begin, end) of each range of batches of the present pass that were left out,
        and are to be used before others.
      passes: per dataset, how many passes there were before the present one. An order that a
        dataset draws anew for each pass follows from it.
      epoch: how many batches of the present epoch have been used; 0 between epochs. It is counted
        where the number of batches of an epoch is limited.
      first: fingerprint of the first batch of the present pass; None if it is not known.
      older: batches of passes before the present one that were left out, likewise.
    """

    batches: tuple[int, ...]
    again: tuple[tuple[int, int, int], ...] = ()
    passes: tuple[int, ...] = ()
    epoch: int = 0
    older: tuple[Range, ...] = ()
    first: int | None = None


class Feed(WorkSource, Protocol):
    """The batches of `fit`, `evaluate` or `predict`.

    The trainer calls `begin_epoch`, then `take` and `done` for each work, and `end_epoch`.

    Attributes:
      batch_spec: nested `tf.TypeSpec`s of a batch; None for a part that is missing.
      source_spec: the form of `Work.source`, to trace a step with.
      num_batches: how many batches an epoch has, or None if that is not known.
      group: how many batches a `Work` has at most.
      is_single: whether a step is called for one batch at a time: works are of one batch each, or
        of parts of one batch each.
    """

    batch_spec: Any
    source_spec: Any
    num_batches: int | None
    group: int

    @property
    def is_single(self) -> bool: ...

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """See `WorkSource`."""

    def repeat(self, work: Work, index: int, worker: int, count: int = 1) -> Work:
        """A work for a worker to run now: batches that another worker has lost.

        A repeat is settled like a work that was taken, and may itself be repeated or given back.

        Args:
          work: what `take` or `repeat` returned, settled or not.
          index: of the first batch in the work.
          worker: index of the worker that is to repeat the batches.
          count: how many batches, all of the same shape.
        """

    def ranges(self, work: Work) -> list[Range]:
        """The batches of a work; once it is done, those that its dataset had."""

    def regroup(self, group: int, alike: bool = False) -> None:
        """Says of which batches a `Work` may consist, from the next one on.

        Args:
          group: how many at most.
          alike: whether all batches of a work must have the same shape.
        """

    def sample(self) -> Any:
        """A batch of the input, which is dealt out all the same; None if there is none."""

    def reset(self) -> None:
        """Makes the next epoch begin with the first batch of a pass."""

    def close(self) -> None:
        """Gives up the present pass; what the user gave as input is not read any more."""

    def require_repeatable(self) -> None:
        """Refuses input that could not go on exactly where a worker is lost.

        To be called before the first epoch, where workers may be lost and recovered from.

        Raises:
          DataError: the input is a generator, or a dataset of workers that has other batches when
            it is made again.
        """

    def begin_epoch(self) -> None:
        """Makes ready for `take`."""

    def end_epoch(self) -> None:
        """Notes that all batches of the epoch have been used."""

    def position(self) -> FeedPosition:
        """Where the feed is. Works that are not settled count as not used."""

    def seek(self, position: FeedPosition) -> None:
        """Goes on from a position of a feed over the same data; to be called between epochs.

        If the position is in the middle of an epoch, the next epoch is the rest of that one.

        Raises:
          DataError: the position is of a feed with another number of datasets.
        """


def shapes_of(batch: Any) -> Sequence[tuple[int, ...] | None]:
    """The shapes of a batch's tensors, None for a part that is missing."""
    return [None if t is None else tuple(t.shape) for t in keras.tree.flatten(batch)]
