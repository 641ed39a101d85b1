"""Input that the chief reads: it deals out the batches, each to one worker."""

import collections
import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps import _keras_data, _keras_models, _tf_data, errors
from tfps._tf_shuffles import Shuffled
from tfps.model.batches import is_dense, without_optionals
from tfps.training import cautions
from tfps.training.chief_pass import Pass
from tfps.training.feeds import FeedPosition, Range, Work, shapes_of
from tfps.training.fingerprints import fingerprint, warn_if_another
from tfps.worker.batch_loop import Stack

# Name of a dataset's generator of seeds -> how many passes there were, in whatever `fit`.
_passes_before: dict[str, int] = {}


class _Numbered(NamedTuple):
    """A batch, and its number in the order in which the feed has read batches."""

    number: int
    batch: Any


@dataclasses.dataclass(eq=False)
class _Lease:
    """The numbers of the batches that a work answers for."""

    numbers: tuple[int, ...]


class ChiefFeed:
    """Batches that the chief reads and deals out; see `feeds.Feed` for attributes and methods.

    A work holds its batches. So whoever keeps a work until it is done can have them repeated.
    """

    def __init__(
        self,
        *,
        steps_per_epoch: int | None = None,
        steps_per_execution: int = 1,
        order: int | None = None,
        **data: Any,
    ):
        """Adapts what `keras.Model.fit` takes.

        Args:
          steps_per_epoch: batches in an epoch; None for the whole input. As in Keras, an epoch has
            whole calls, and so up to `steps_per_execution - 1` batches more.
          steps_per_execution: batches in a call at most.
          order: seed of an order that a later process can repeat; None for Keras's own order.
          **data: x, y, sample_weight, batch_size, shuffle, class_weight.
        """
        # What is read of it once cannot be read again in this process.
        self._is_consumed = isinstance(data["x"], Iterator)
        if isinstance(data["x"], tf.data.Dataset):
            data["shuffle"] = False  # Keras would warn that a dataset shuffles itself.
        self._indexed: _keras_data.Indexed | None = None
        if order is not None and isinstance(data["x"], keras.utils.PyDataset):
            self._indexed = _keras_data.Indexed(data["x"], order if data["shuffle"] else None)
            data |= {"x": self._indexed, "shuffle": False}
        epochs = _keras_models.EpochIterator(steps_per_epoch=steps_per_epoch, **data)
        self._adapter = epochs.data_adapter
        self._order = order
        # Nobody else may read such input before an iterator over it has ended.
        self._is_in_turn = _keras_data.is_read_in_turn(self._adapter)
        self._dataset = self._made()
        self._shuffled: Shuffled | None = None
        if order is not None and isinstance(data["x"], tf.data.Dataset):
            self._shuffled = Shuffled(self._dataset, order)
        self._steps = epochs.steps_per_epoch
        self.num_batches = epochs.num_batches
        calls = math.inf if not self.num_batches else -(-self.num_batches // steps_per_execution)
        self._most = calls * steps_per_execution
        self.batch_spec = without_optionals(self._dataset.element_spec)
        flat = tf.nest.flatten(self.batch_spec)
        self._is_plain = all(isinstance(s, tf.TensorSpec) for s in flat)
        self._stackable = is_dense(self.batch_spec)
        self.regroup(steps_per_execution)
        self._pass: Pass | None = None
        self._passes = 0  # how many iterators the dataset has had
        if self._shuffled is not None:
            self._passes = _passes_before.get(self._shuffled.name, 0)
        self._first = 0  # number of the first batch of the present pass
        self._last = math.inf  # number after the last batch of the present pass, if that is known
        self._print: int | None = None  # of that batch, if it has to be known
        self._begun: list[tuple[int, int]] = []  # (number of the first batch, pass) of the last two
        self._read = 0  # number of the next batch that is read
        self._in_epoch = False
        self._ready: collections.deque[_Numbered] = collections.deque()  # read, not dealt out
        self._open: set[int] = set()  # numbers of batches that were dealt out and are not settled
        self._resumes: FeedPosition | None = None  # where the next pass is to begin
        self._before: FeedPosition | None = None  # where the feed is, if an epoch was begun ahead

    def _made(self) -> tf.data.Dataset:
        """The dataset, as if it had had no iterator yet."""
        if self._order is not None and _keras_data.is_shuffled(self._adapter):
            return _keras_data.in_seeded_order(self._adapter, self._order)
        dataset = self._adapter.get_tf_dataset()
        return _tf_data.without_tuning(dataset) if self._is_in_turn else dataset

    def regroup(self, group: int, alike: bool = False) -> None:
        """See `feeds.Feed`; batches that are more than tensors are parts of their own."""
        self._alike = alike
        self.group = group
        self.lives: dict[int, int | None] = {}
        self.source_spec = self.batch_spec if self.is_single else _stacked(self.batch_spec)

    @property
    def is_single(self) -> bool:
        """See `feeds.Feed`."""
        return self.group == 1 or not self._stackable

    def reset(self) -> None:
        """See `feeds.Feed`; as in Keras, a `PyDataset` hears of it as of the end of an epoch."""
        begun_ahead = self._before is not None and not any(self._before.batches)
        if not begun_ahead:
            self.close()
            self._resumes = self._before = None
        self._adapter.on_epoch_end()

    def close(self) -> None:
        """See `feeds.Feed`; as in Keras, whoever reads ahead for the present pass ends."""
        if self._pass is not None and self._is_in_turn:
            self._pass.end()
        self._pass = None
        _keras_data.read_anew(self._adapter)

    def sample(self) -> Any:
        """See `feeds.Feed`; the epoch begins ahead, with this batch."""
        if _keras_data.is_indexed(self._adapter):
            return without_optionals(_keras_data.first_batch(self._adapter))
        if not self._in_epoch and self._before is None:
            before = self.position()
            self._begin()
            self._before = before
        if not self._ready and (one := self._next()) is not None:
            self._ready.append(one)
        return self._ready[0].batch if self._ready else None

    def begin_epoch(self) -> None:
        """See `feeds.Feed`; with `steps_per_epoch`, the pass of the last epoch goes on."""
        if self._before is None:
            self._begin()
        self._before, self._in_epoch = None, True

    def _begin(self) -> None:
        goes_on = self._steps is not None or (self._is_consumed and self._resumes is not None)
        begins = self._pass is None or not goes_on
        if begins:
            self.close()
            self._aim()  # Keras may begin to read ahead.
        self._adapter.on_epoch_begin()
        self._left, self._taken, self._has_ended = self._most, 0, False
        if (resumed := self._resumes) is not None:
            self._left -= resumed.epoch
            self._taken = resumed.epoch + sum(end - begin for _, begin, end in resumed.again)
        if begins:
            self._begin_pass()
        self._resumes = None
        self._open.clear()

    def take(self, worker: int, most: float = math.inf) -> Work | None:
        """See `feeds.WorkSource`."""
        del worker
        groups: list[list[_Numbered]] = []
        wanted = min(self.group, self._left, most)
        while wanted > 0 and (batches := self._take_alike(wanted)):
            groups.append(batches)
            wanted -= len(batches)
            if self._alike:
                break
        if not groups:
            return None
        work = self._work(groups)
        self._left -= work.count
        return work

    def _work(self, groups: list[list[_Numbered]]) -> Work:
        """The work of some batches, those of each group of the same shape."""
        numbers = tuple(one.number for group in groups for one in group)
        self._open.update(numbers)
        sources = [self._source([one.batch for one in group]) for group in groups]
        if len(groups) == 1:
            return Work(sources[0], len(numbers), is_sure=True, lease=_Lease(numbers))
        pairs = zip(sources, groups, strict=True)
        parts = tuple(Work(source, len(group), is_sure=True) for source, group in pairs)
        return Work(None, len(numbers), is_sure=True, parts=parts, lease=_Lease(numbers))

    def _source(self, batches: list[Any]) -> Any:
        if self.is_single:
            return batches[0]
        return Stack(keras.tree.map_structure(_stack, *batches))

    def _take_alike(self, most: float) -> list[_Numbered]:
        """The next batches of the same shape; empty at the end of the epoch."""
        batches: list[_Numbered] = []
        while len(batches) < (1 if self.is_single else most):
            one = self._ready.popleft() if self._ready else self._next()
            if one is None:
                break
            if batches and shapes_of(one.batch) != shapes_of(batches[0].batch):
                self._ready.appendleft(one)
                break
            batches.append(one)
        return batches

    def done(self, worker: int, work: Work, steps: int) -> None:
        """See `feeds.WorkSource`; every batch that was dealt out is used."""
        del worker, steps
        self._open.difference_update(work.lease.numbers)

    def give_back(self, worker: int, work: Work, begin: int) -> None:
        """See `feeds.WorkSource`."""
        del worker
        numbers = work.lease.numbers
        self._open.difference_update(numbers)
        work.lease.numbers = numbers[:begin]
        again = [_Numbered(numbers[i], _lone(work, i)) for i in range(begin, len(numbers))]
        self._ready = collections.deque(sorted([*self._ready, *again], key=lambda one: one.number))
        self._left += len(again)

    def repeat(self, work: Work, index: int, worker: int, count: int = 1) -> Work:
        """See `feeds.Feed`."""
        del worker
        batches = range(index, index + count)
        return self._work([[_Numbered(work.lease.numbers[i], _lone(work, i)) for i in batches]])

    def ranges(self, work: Work) -> list[Range]:
        """See `feeds.Feed`."""
        found: list[Range] = []
        for number in work.lease.numbers:
            # A pass may have begun, and have been left before its first batch.
            first, turn = next(one for one in reversed(self._begun) if one[0] <= number)
            index = number - first
            if found and found[-1][1:] == (turn, found[-1][2], index):
                found[-1] = (0, turn, found[-1][2], index + 1)
            else:
                found.append((0, turn, index, index + 1))
        return found

    def left(self, worker: int) -> None:
        """See `feeds.WorkSource`; the chief has read what the worker was given."""

    def back(self, worker: int) -> None:
        """See `feeds.WorkSource`."""

    def require_repeatable(self) -> None:
        """See `feeds.Feed`; works hold their batches, but a generator cannot go back to a cut."""
        if self._is_consumed:
            raise errors.DataError(
                "a generator cannot give again what it gave since a snapshot; give a "
                'tf.data.Dataset or a PyDataset, or Trainer(data="at_least_once")'
            )
        if self._indexed is not None and self._indexed.changes:
            cautions.warn_of_hooks()
        if self._shuffled is not None:
            if self._shuffled.why_not:
                cautions.warn_of_order(self._shuffled.why_not)
            cautions.warn_of(self._dataset, "The dataset")

    def end_epoch(self) -> None:
        """See `feeds.Feed`."""
        if self._steps is None and self.num_batches and self._taken >= self.num_batches:
            # Keras 3.15 ends such an epoch with an iterator that it does not use, and the order of
            # a shuffle with a seed depends on how many iterators there were before.
            self._turn_to(self._passes + 1)
        elif self._read >= self._last and not self._ready:
            self._pass = None
        goes_on = self._steps is not None and self._pass is not None
        _keras_data.end_epoch(self._adapter, goes_on)
        self._in_epoch = False

    def position(self) -> FeedPosition:
        """See `feeds.Feed`."""
        if (before := self._before or self._resumes) is not None:
            return before
        if not self._in_epoch and (self._steps is None or self._pass is None):
            return FeedPosition((0,), passes=(self._passes,))
        unsettled = sorted([one.number for one in self._ready] + list(self._open))
        ranges = [(n - self._first, n - self._first + 1) for n in unsettled if n >= self._first]
        epoch = 0
        if self._in_epoch and self._most < math.inf:
            epoch = int(self._most - self._left) - len(self._open)
        again = tuple((0, begin, end) for begin, end in ranges)
        used = (self._read - self._first,)
        return FeedPosition(used, again, (self._passes - 1,), epoch, first=self._print)

    def seek(self, position: FeedPosition) -> None:
        """See `feeds.Feed`."""
        if len(position.batches) != 1:
            raise errors.DataError(
                f"the position is of {len(position.batches)} datasets of workers, but this input "
                "is read by the chief; go on with the dataset_fn that the position was taken from"
            )
        if position == self._before:
            return
        self._before = None
        if self._is_consumed and self._pass is not None:
            # It goes on where it is.
            position = dataclasses.replace(position, batches=(0,), again=())
        else:
            self.close()
        if self._in_epoch:
            if self._indexed is not None:
                self._indexed.is_interrupted = True
            self._adapter.on_epoch_end()
            self._in_epoch = False
        if self._passes > sum(position.passes) and self._order is not None:
            self._dataset, self._passes = self._made(), 0
        self._resumes = position

    def _aim(self) -> None:
        """Lets what is read by index begin where the next pass does, in the order of that pass."""
        if self._indexed is not None:
            position = self._resumes or FeedPosition((0,))
            skip = min([begin for _, begin, _ in position.again], default=position.batches[0])
            self._indexed.begin(max(self._passes, sum(position.passes)), skip)

    def _begin_pass(self) -> None:
        self._aim()
        position, self._resumes = self._resumes or FeedPosition((0,)), None
        self._ready.clear()
        self._turn_to(max(self._passes, sum(position.passes)))
        if self._shuffled is not None and self._shuffled.begins_anew:
            self._dataset = self._shuffled.at(self._passes)
            _passes_before[self._shuffled.name] = self._passes + 1  # The iterator that follows.
        end = position.batches[0]
        again = {i for _, begin, last in position.again for i in range(begin, last)}
        skip = min(again, default=end)
        self._print = position.first if skip else None
        if self._print is not None and not self._begun:
            self._look_at_first(self._print)
        dataset, count = self._dataset, self._adapter.num_batches
        if skip and self._indexed is None:
            dataset, count = _tf_data.skipping(dataset, skip), count and count - skip
        self._first, self._read = self._read, self._read + skip
        self._last = math.inf if count is None else self._read + count
        self._pass = self._begin_iterator(dataset)
        self._begun = [*self._begun[-1:], (self._first, self._passes - 1)]
        for i in range(skip, end):
            try:
                one = self._numbered(self._pass.next())
            except EOFError:
                break  # The data is shorter than it was.
            if i in again:
                self._ready.append(one)

    def _look_at_first(self, known: int) -> None:
        """Warns if the pass, begun in another process, does not begin with the batch it had."""
        shuffled, turn = self._shuffled, self._passes
        if shuffled is not None:
            begins_anew, dataset = shuffled.begins_anew, self._dataset
            warn_if_another(lambda: shuffled.at(turn) if begins_anew else dataset, known)

    def _turn_to(self, turn: int) -> None:
        """Makes the dataset's next iterator that of a pass, which is not before the present one.

        An order that is drawn anew for each pass follows from the number of passes before.
        """
        if self._shuffled is not None and self._shuffled.begins_anew:
            self._passes = _passes_before[self._shuffled.name] = turn
        while self._passes < turn:
            self._begin_iterator(self._dataset)

    def _begin_iterator(self, dataset: tf.data.Dataset) -> Pass:
        self._passes += 1
        try:
            return Pass(dataset)
        except tf.errors.InvalidArgumentError as e:
            if "unknown device" not in e.message:
                raise
            raise errors.DataError(
                "the dataset was made before the strategy connected, on a device that connecting "
                "has renamed; make the ParameterServerStrategy first"
            ) from e

    def _next(self) -> _Numbered | None:
        if self._has_ended:
            return None
        # With steps_per_epoch, the pass goes on from the last epoch and may have ended just there.
        for _ in range(2):
            assert self._pass is not None
            try:
                element = self._pass.next()
            except EOFError:
                pass
            else:
                self._taken += 1
                return self._numbered(element)
            if self._steps is None or self._taken:
                break
            self.close()
            self._begin_pass()
        if self._steps is not None:
            warnings.warn(
                "Your input ran out of data; interrupting training. Make sure that it has at least "
                "`steps_per_epoch * epochs` batches in fit, and `steps` batches in evaluate and "
                f"predict; you may need to `.repeat()` the dataset. It ended after {self._taken} "
                f"of {self._steps} batches.",
                stacklevel=2,
            )
            self.close()
        self._has_ended = True
        return None

    def _numbered(self, element: Any) -> _Numbered:
        batch = element if self._is_plain else without_optionals(element)
        if self._read == self._first and self._shuffled is not None:
            self._print = fingerprint(batch)
        self._read += 1
        return _Numbered(self._read - 1, batch)


def _stacked(spec):
    return Stack(
        keras.tree.map_structure(
            lambda s: None if s is None else tf.TensorSpec([None, *s.shape], s.dtype), spec
        )
    )


def _stack(*parts):
    return None if parts[0] is None else tf.stack(parts)


def _lone(work: Work, index: int) -> Any:
    """The batch of an index in a work of the chief's."""
    for part in work.steps:
        if index < part.count:
            break
        index -= part.count
    source = part.source
    if not isinstance(source, Stack):
        return source
    return keras.tree.map_structure(lambda t: None if t is None else t[index], source.batches)
