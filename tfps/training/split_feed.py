"""Input in splits: each worker reads a split to its end, and is then given the next one."""

import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf

from tfps import _tf_data, errors
from tfps.model.batches import without_optionals
from tfps.training.feeds import FeedPosition, Range, Work
from tfps.training.movable_dataset import MovableDataset
from tfps.training.splits import Splits
from tfps.training.worker_dataset import require_repeatable, sample_of

_DONE = -1  # in a position: a split of which nothing is left


class _Split(MovableDataset):
    """A split that is being read in some pass.

    Attributes:
      key: number of the pass, and index of the split.
    """

    def __init__(self, make: Callable[[], tf.data.Dataset], key: tuple[int, int]):
        """Starts before its first batch, with nobody who reads it."""
        super().__init__(make)
        self.key = key
        self.passes.restart()

    @property
    def is_done(self) -> bool:
        """Whether nothing of it is left to be dealt out or settled."""
        if self.length >= 0:
            self.passes.limit(self.length)
        return self.passes.is_over and not self.passes.outstanding


class SplitFeed:
    """Splits that are leased to workers; see `feeds.Feed` for attributes and methods.

    A pass is over when all of its splits are. With `steps_per_epoch`, who is free then waits for
    those who read the last splits.
    """

    def __init__(
        self,
        splits: Splits,
        steps_per_epoch: int | None = None,
        steps_per_execution: int = 1,
        living: Collection[int] | None = None,
    ):
        """Makes the dataset of the first split on a living worker, to find its form.

        Args:
          splits: what the user gave as `x`.
          steps_per_epoch: batches in an epoch, of all workers together; when all splits are done,
            they are begun again. None makes an epoch one pass over the splits.
          steps_per_execution: batches in a call at most.
          living: indices of the workers that live; None for all.

        Raises:
          DataError: `make_dataset` returned something that is not a `tf.data.Dataset`.
        """
        self._splits = splits
        self._steps = steps_per_epoch
        self.group = steps_per_execution
        self._spec: Any = None
        self._first = min(living or (), default=0)  # the worker on which splits are tried
        first = MovableDataset(self._making(0, 0), self._first)
        spec = self._spec = first.dataset().element_spec
        self._lost: set[int] = set()
        self.lives: dict[int, int | None] = {}
        self._resumes = False  # whether the next epoch is the rest of one
        self._in_epoch = False
        self._epoch = 0  # batches of the next epoch that have been used before a restart
        self._turn = -1  # number of the present pass
        self.num_batches = steps_per_epoch
        self.batch_spec = without_optionals(spec)
        self.source_spec = tf.data.IteratorSpec(spec)
        self._clear()

    def _clear(self) -> None:
        """Ends the present pass."""
        self._waiting: list[int] = []  # indexes of splits that nobody reads yet, the next one last
        self._begun: dict[tuple[int, int], _Split] = {}  # what is not done; see `_Split.key`
        self._found = True  # whether the present pass has had a batch

    def regroup(self, group: int, alike: bool = False) -> None:
        """See `feeds.Feed`; batches that workers read may differ in shape."""
        del alike
        self.group = group

    @property
    def is_single(self) -> bool:
        """See `feeds.Feed`."""
        return self.group == 1

    def sample(self) -> Any:
        """See `feeds.Feed`; it is of the first split."""
        return sample_of(self._making(0, 0), self._first)

    def reset(self) -> None:
        """See `feeds.Feed`; the order of the splits is again that of the first pass."""
        self._turn, self._epoch, self._resumes = -1, 0, False
        self._clear()

    def close(self) -> None:
        """See `feeds.Feed`; the iterators are on the workers, and are theirs."""

    def begin_epoch(self) -> None:
        """See `feeds.Feed`; with `steps_per_epoch`, the pass of the last epoch goes on."""
        self._left = (self._steps or math.inf) - self._epoch
        self._in_epoch, self._epoch = True, 0
        if self._steps is None and not self._resumes:
            self._begin_pass()
        self._resumes = False

    def _begin_pass(self) -> None:
        self._clear()
        self._turn += 1
        self._found = False
        self._waiting = self._splits.order(self._turn)[::-1]

    def _is_over(self) -> bool:
        """Whether nothing of the present pass is left to be dealt out or settled."""
        return not self._waiting and not self._begun

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """See `feeds.WorkSource`; the source is an iterator on the worker."""
        if self._left <= 0 or worker in self._lost:
            return None
        if self._is_over() and self._steps is not None and self._found:
            self._begin_pass()
        split = self._split_for(worker)
        if split is None:
            return None
        work = split.deal(min(self.group, self._left, most))
        self._left -= work.count
        return work

    def _split_for(self, worker: int) -> _Split | None:
        """The split that the worker reads; else one that nobody reads, begun ones first."""
        free = [one for one in self._begun.values() if not one.passes.is_over]
        for host in (worker, None):
            for one in free:
                if one.host == host:
                    return self._given(one, worker)
        if not self._waiting:
            return None
        return self._given(self._split(self._waiting.pop()), worker)

    @staticmethod
    def _given(split: _Split, worker: int) -> _Split:
        if split.host != worker:
            split.move(worker)
        return split

    def _split(self, index: int) -> _Split:
        key = self._turn, index
        split = self._begun[key] = _Split(self._making(*key), key)
        return split

    def _making(self, turn: int, index: int) -> Callable[[], tf.data.Dataset]:
        return functools.partial(self._made, turn, index)

    def _made(self, turn: int, index: int) -> tf.data.Dataset:
        """Makes the dataset of a split, on the device in scope."""
        item = self._splits.items[index]
        with _tf_data.seeded(self._splits.seed, turn, index):
            dataset = self._splits.make_dataset(item)
        if not isinstance(dataset, tf.data.Dataset):
            raise errors.DataError(
                f"make_dataset returned {type(dataset).__name__} for {item!r}; it must return a "
                "tf.data.Dataset of batches"
            )
        if self._spec is not None and not _tf_data.are_alike(self._spec, dataset.element_spec):
            raise errors.DataError(
                f"make_dataset returned batches of {dataset.element_spec} for {item!r}, and of "
                f"{self._spec} for {self._splits.items[0]!r}; all splits must have the same form"
            )
        if _tf_data.length_of(dataset) == tf.data.INFINITE_CARDINALITY:
            raise errors.DataError(
                f"make_dataset returned a dataset for {item!r} that repeats without an end; a "
                "split is read to its end, so leave out repeat(); fit begins splits again by itself"
            )
        return _tf_data.without_tuning(dataset)

    def done(self, worker: int, work: Work, steps: int) -> None:
        """See `feeds.WorkSource`; a split of which nothing is left is done."""
        del worker
        self._left += work.lease.done(steps)
        self._found |= steps > 0
        self._note(work.lease.of)

    def give_back(self, worker: int, work: Work, begin: int) -> None:
        """See `feeds.WorkSource`; anybody may go on with a split that was done."""
        del worker
        self._left += work.lease.give_back(begin)
        self._note(work.lease.of)

    def repeat(self, work: Work, index: int, worker: int, count: int = 1) -> Work:
        """See `feeds.Feed`."""
        split = work.lease.of
        if split.key not in self._begun:
            split.move(None)  # Workers may have been lost since it was done.
        again = work.lease.repeat(index, worker, count)
        self._note(split)
        return again

    def ranges(self, work: Work) -> list[Range]:
        """See `feeds.Feed`; a split is a dataset."""
        turn, index = work.lease.of.key
        lease = work.lease.lease
        return [(index, turn, lease.begin, lease.begin + lease.count)]

    def _note(self, split: _Split) -> None:
        """Keeps a split as long as something of it is left."""
        if split.is_done:
            self._begun.pop(split.key, None)
        elif split.key not in self._begun:
            split.move(None)
            self._begun[split.key] = split

    def left(self, worker: int) -> None:
        """See `feeds.WorkSource`; whoever is free goes on with the split that it read."""
        self._lost.add(worker)
        for one in self._begun.values():
            one.lose(worker)
            if one.host == worker:
                one.move(None)

    def back(self, worker: int) -> None:
        """See `feeds.WorkSource`."""
        self._lost.discard(worker)
        for one in self._begun.values():
            one.lose(worker)
            if one.host == worker:  # Its new process has nothing of it.
                one.move(None)

    def require_repeatable(self) -> None:
        """See `feeds.Feed`; the first split is tried."""
        name = f"make_dataset, called for {self._splits.items[0]!r},"
        require_repeatable(self._making(0, 0), self._first, name)

    def end_epoch(self) -> None:
        """See `feeds.Feed`."""
        self._in_epoch = False
        if self._steps is None:
            self._clear()

    def position(self) -> FeedPosition:
        """See `feeds.Feed`; there is a number for each split, -1 for one that is done."""
        goes_on = self._in_epoch or self._resumes
        if self._is_over() and not (goes_on and self._steps is None):
            batches, turn = [0] * len(self._splits), self._turn + 1
        else:
            batches, turn = [_DONE] * len(self._splits), self._turn
        for index in self._waiting:
            batches[index] = 0
        again = []
        for (_, index), one in sorted(self._begun.items()):
            batches[index] = one.passes.cursor
            again += [(index, begin, end) for _, begin, end in one.passes.unsettled]
        epoch = self._epoch
        if self._in_epoch and self._steps is not None:
            outstanding = sum(one.passes.outstanding for one in self._begun.values())
            epoch = int(self._steps - self._left) - outstanding
        return FeedPosition(tuple(batches), tuple(again), (turn,), epoch)

    def seek(self, position: FeedPosition) -> None:
        """See `feeds.Feed`."""
        if len(position.batches) != len(self._splits):
            raise errors.DataError(
                f"the position is of {len(position.batches)} dataset(s), but there are "
                f"{len(self._splits)} splits; go on with the splits of before"
            )
        self.reset()
        self._epoch, self._resumes = position.epoch, any(position.batches)
        self._turn = sum(position.passes)
        if not self._resumes:
            self._turn -= 1
            return
        for index in self._splits.order(self._turn)[::-1]:
            cursor = position.batches[index]
            gaps = [(begin, end) for i, begin, end in position.again if i == index]
            if cursor > 0:
                self._split(index).passes.resume(0, cursor, gaps)
            elif cursor == 0:
                self._waiting.append(index)
