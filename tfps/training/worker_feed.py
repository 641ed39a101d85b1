"""Input that the workers read: a `dataset_fn` makes a dataset for each worker."""

import contextlib
import math
from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf

from tfps import _tf_data, errors
from tfps.model.batches import without_optionals
from tfps.training.context import Context
from tfps.training.feeds import FeedPosition, Range, Work
from tfps.training.movable_dataset import MovableDataset
from tfps.training.worker_dataset import require_repeatable, sample_of


class WorkerFeed:
    """Datasets that live on the workers; see `feeds.Feed` for attributes and methods.

    The dataset of a lost worker is made again on another one, which skips what was used. It goes
    home when its worker is back. A worker with several datasets takes turns between them.
    """

    def __init__(
        self,
        dataset_fn: Callable[[Context], tf.data.Dataset],
        num_workers: int,
        steps_per_epoch: int | None = None,
        steps_per_execution: int = 1,
        living: Collection[int] | None = None,
        order: int | None = None,
    ):
        """Calls `dataset_fn` once for each worker, under its device, or that of one that lives.

        Args:
          dataset_fn: what the user gave as `x`. It is called again for a dataset that is lost with
            its worker. What it draws from TensorFlow's seeds is then the same.
          num_workers: of the cluster.
          steps_per_epoch: batches in an epoch, of all workers together. Datasets that end are begun
            again. None makes an epoch one pass over each dataset.
          steps_per_execution: batches in a call at most.
          living: indices of the workers that live; None for all.
          order: seed of what `dataset_fn` draws, which a later process can repeat; None for what
            it draws in this process.

        Raises:
          DataError: it returned something that is not a `tf.data.Dataset`.
        """
        self._steps = steps_per_epoch
        self.group = steps_per_execution
        self._make = make = _Making(dataset_fn, num_workers, order)
        self._living = set(range(num_workers) if living is None else living)
        self.lives: dict[int, int | None] = {}
        first = min(self._living, default=0)
        hosts = [w if w in self._living else first for w in range(num_workers)]
        self._inputs = [MovableDataset(make.of(w), host) for w, host in enumerate(hosts)]
        datasets = [one.dataset() for one in self._inputs]
        self._in_epoch = False
        self._epoch = 0  # batches of the next epoch that have been used before a restart
        self.num_batches = steps_per_epoch
        spec = datasets[0].element_spec
        self.batch_spec = without_optionals(spec)
        self.source_spec = tf.data.IteratorSpec(spec)

    def regroup(self, group: int, alike: bool = False) -> None:
        """See `feeds.Feed`; batches that workers read may differ in shape."""
        del alike
        self.group = group

    @property
    def is_single(self) -> bool:
        """See `feeds.Feed`."""
        return self.group == 1

    def sample(self) -> Any:
        """See `feeds.Feed`; it is read by a living worker."""
        worker = min(self._living)
        return sample_of(self._make.of(worker), worker)

    def reset(self) -> None:
        """See `feeds.Feed`."""
        self._epoch = 0
        for one in self._inputs:
            one.passes.forget()

    def close(self) -> None:
        """See `feeds.Feed`; the iterators are on the workers, and are theirs."""

    def begin_epoch(self) -> None:
        """See `feeds.Feed`; with `steps_per_epoch`, the passes of the last epoch go on."""
        self._left = (self._steps or math.inf) - self._epoch
        self._in_epoch, self._epoch = True, 0
        for one in self._inputs:
            if one.passes.is_over and self._steps is None:
                one.passes.restart()

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """See `feeds.WorkSource`; the source is an iterator on the worker."""
        self._send_home(worker)
        if self._left <= 0:
            return None
        own = [one for one in self._inputs if one.host == worker]
        for one in sorted(own, key=lambda one: one.passes.cursor):
            if one.passes.is_over:
                if self._steps is None or one.passes.is_empty:
                    continue
                one.passes.restart()
            work = one.deal(min(self.group, self._left, most))
            self._left -= work.count
            return work
        return None

    def done(self, worker: int, work: Work, steps: int) -> None:
        """See `feeds.WorkSource`; batches that the worker's dataset did not have are dealt anew."""
        del worker
        self._left += work.lease.done(steps)

    def give_back(self, worker: int, work: Work, begin: int) -> None:
        """See `feeds.WorkSource`."""
        del worker
        self._left += work.lease.give_back(begin)

    def repeat(self, work: Work, index: int, worker: int, count: int = 1) -> Work:
        """See `feeds.Feed`."""
        return work.lease.repeat(index, worker, count)

    def ranges(self, work: Work) -> list[Range]:
        """See `feeds.Feed`; there is a dataset for each worker."""
        leased, lease = work.lease, work.lease.lease
        index = self._inputs.index(leased.of)
        return [(index, lease.turn, lease.begin, lease.begin + lease.count)]

    def left(self, worker: int) -> None:
        """See `feeds.WorkSource`; its datasets go to the workers that read the fewest."""
        self._living.discard(worker)
        for one in self._inputs:
            one.lose(worker)
            if one.host == worker:
                one.move(self._least_loaded())

    def back(self, worker: int) -> None:
        """See `feeds.WorkSource`; its dataset goes back to it at the next `take`."""
        for one in self._inputs:
            one.lose(worker)
            if one.host == worker:  # Its new process has nothing of it.
                one.move(worker)
        self._living.add(worker)

    def _send_home(self, worker: int) -> None:
        if worker not in self._living:
            return
        for one in self._inputs:
            if one.host is None:
                one.move(worker)
        if self._inputs[worker].host != worker:
            self._inputs[worker].move(worker)

    def _least_loaded(self) -> int | None:
        load = {w: sum(one.host == w for one in self._inputs) for w in sorted(self._living)}
        return min(load, key=lambda w: load[w]) if load else None

    def require_repeatable(self) -> None:
        """See `feeds.Feed`; the dataset of one living worker is tried."""
        worker = min(self._living)
        name = f"dataset_fn, called for worker {worker},"
        require_repeatable(self._make.of(worker), worker, name)

    def end_epoch(self) -> None:
        """See `feeds.Feed`."""
        self._in_epoch = False
        if self._steps is None:
            for one in self._inputs:
                one.passes.forget()

    def position(self) -> FeedPosition:
        """See `feeds.Feed`."""
        passes = [one.passes for one in self._inputs]
        # A pass that is over in the middle of an epoch stays so until the epoch ends.
        over = [p.is_over and not (self._in_epoch and self._steps is None) for p in passes]
        batches = [0 if o else p.cursor for p, o in zip(passes, over, strict=True)]
        turns = [p.turn + o for p, o in zip(passes, over, strict=True)]
        unsettled = [(i, gap) for i, p in enumerate(passes) for gap in p.unsettled]
        again = tuple((i, begin, end) for i, (_, begin, end) in unsettled)
        epoch = self._epoch
        if self._in_epoch and self._steps is not None:
            outstanding = sum(p.outstanding for p in passes)
            epoch = int(self._steps - self._left) - outstanding
        return FeedPosition(tuple(batches), again, tuple(turns), epoch)

    def seek(self, position: FeedPosition) -> None:
        """See `feeds.Feed`."""
        if len(position.batches) != len(self._inputs):
            raise errors.DataError(
                f"the position is of {len(position.batches)} dataset(s), but there are "
                f"{len(self._inputs)} workers; go on with as many workers as before"
            )
        self._epoch = position.epoch
        turns = position.passes or (0,) * len(self._inputs)
        for i, one in enumerate(self._inputs):
            one.drop()
            gaps = [(begin, end) for d, begin, end in position.again if d == i]
            if position.batches[i] or gaps:
                one.passes.resume(turns[i], position.batches[i], gaps)
            else:
                one.passes.forget()
                one.passes.turn = turns[i] - 1


class _Making:
    """Makes the dataset of each worker, as often as it is needed, always the same."""

    def __init__(
        self,
        dataset_fn: Callable[[Context], tf.data.Dataset],
        num_workers: int,
        order: int | None = None,
    ):
        self._function, self._num_workers, self._order = dataset_fn, num_workers, order
        self._drawn = _tf_data.Seeds()

    def _seeds(self, worker: int) -> contextlib.AbstractContextManager[None]:
        if self._order is None:
            return self._drawn.of(worker)
        return _tf_data.seeded(self._order, worker)

    def of(self, worker: int) -> Callable[[], tf.data.Dataset]:
        """What makes the dataset of a worker, on the device in scope."""

        def make() -> tf.data.Dataset:
            with self._seeds(worker):
                dataset = self._function(Context(worker, self._num_workers))
            if not isinstance(dataset, tf.data.Dataset):
                raise errors.DataError(
                    f"dataset_fn returned {type(dataset).__name__} for worker {worker}; it must "
                    "return a tf.data.Dataset of batches"
                )
            return dataset

        return make
