"""Results that somebody holds while they are on their workers: they are brought to the chief."""

import collections
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from tfps import _tf
from tfps.cluster.members import Members, Task
from tfps.coordinator.faults import Faults
from tfps.coordinator.remote_value import RemoteValue, Source, copied
from tfps.coordinator.result_buffer import Row

# Results of up to `_SMALL` bytes share messages when several are brought, `_TOGETHER` in each.
_SMALL = 4096
_TOGETHER = 256

# Held results that a worker may have at most before they are brought, though nobody waits: what is
# lost with a worker is computed again, and its effects are then had twice.
_MOST_AWAY = 128

# Values that are noted until the ones that nobody holds any more are looked for.
_NOTED = 1000


class _Item(NamedTuple):
    """A result that is to be brought, as it was when somebody looked."""

    value: RemoteValue
    source: Source
    result: Any


class Held:
    """Brings results to the chief, and has those computed again that are lost with their workers.

    It knows the values by weak references, so a result that nobody holds is never brought.
    """

    def __init__(
        self,
        members: Members,
        faults: Faults,
        lock: threading.RLock,
        put_back: Callable[[Any], bool],
    ):
        """Knows no value yet.

        Args:
          members: the cluster's members.
          faults: judges the errors of copies, as if they were those of the calls.
          lock: that of the work queue.
          put_back: queues a closure again, with the lock held; returns False if it must not run.
            It is not kept alive.
        """
        self._members = members
        self._faults = faults
        self._lock = lock
        self._put_back = weakref.WeakMethod(put_back)
        self._bringing = threading.Lock()
        self._noted: list[weakref.ref[RemoteValue]] = []
        self._most = _NOTED
        self._away: collections.Counter[int] = collections.Counter()  # by worker, since a copy

    def add(self, value: RemoteValue, source: Source, result: Any) -> None:
        """Notes a value that is about to be filled with a result; the queue's lock is held."""
        if result is None or (type(result) is list and not result):
            return  # There are no tensors.
        value._source = source
        self._away[source.worker] += 1
        self._noted.append(weakref.ref(value))
        if len(self._noted) > self._most:
            self._noted = [ref for ref in self._noted if _is_on_worker(ref())]
            self._most = max(_NOTED, 2 * len(self._noted))

    def relieve(self, worker: int) -> None:
        """Copies a worker's results to the chief, if it has many; its lane calls this.

        An error is left to whoever waits for the results.
        """
        if self._away[worker] < _MOST_AWAY:
            return
        with self._lock:
            self._away[worker] = 0
            values = [value for ref in self._noted if (value := ref()) is not None]
            items = [
                _Item(value, value._source, value._result)
                for value in values
                if value._source is not None and value._source.worker == worker
                if _is_on_worker(value)
            ]
        for group in _groups(items):
            if self._copy(group) is not None:
                return

    def bring_all(self, repeat: bool = True) -> list[tuple[RemoteValue, BaseException]]:
        """Copies all results to the chief that somebody holds; see `bring`."""
        with self._bringing:  # Whoever comes second waits until the first has brought them.
            with self._lock:
                noted, self._noted, self._most = self._noted, [], _NOTED
            values = [value for ref in noted if (value := ref()) is not None]
            try:
                return self.bring(values, repeat)
            finally:
                with self._lock:
                    self._noted += [ref for ref in noted if _is_on_worker(ref())]

    def bring(
        self, values: list[RemoteValue], repeat: bool = True
    ) -> list[tuple[RemoteValue, BaseException]]:
        """Copies results to the chief, small ones together.

        Args:
          values: the values. One that has no result now, or has it on the chief, is left alone.
          repeat: whether a call whose result is lost is queued again. Its value is then not ready.

        Returns:
          The values whose results can be had neither way, with the reasons.
        """
        with self._lock:
            items = [
                _Item(value, value._source, value._result)
                for value in values
                if value._source is not None and _is_on_worker(value)
            ]
        failed = []
        for group in _groups(items):
            self._members.attend()
            error = self._copy(group)
            if error is not None:
                failed += self._again(group, error, repeat)
        return failed

    def _copy(self, group: list[_Item]) -> BaseException | None:
        """Copies the results of a group to the chief; returns the error if that fails."""
        row, results = group[0].result, [None]
        if not isinstance(row, Row) or not row.is_on_chief:
            if self._is_gone(group[0]):
                # Who asks a frozen host, or a host that has vanished, may wait for long.
                return tf.errors.UnavailableError(None, None, "the worker of the result is lost")
            try:
                # The caller may be tracing a graph, which has nothing to do with the copy.
                with tf.init_scope():
                    results = _copy(group)
            except Exception as e:
                return e
        with self._lock:
            for item, result in zip(group, results, strict=True):
                if item.value._source is item.source and item.value._ready:
                    item.value._brought(result)
        return None

    def _again(
        self, group: list[_Item], error: BaseException, repeat: bool
    ) -> list[tuple[RemoteValue, BaseException]]:
        """Has the calls of a group repeated; returns those for which that is not possible."""
        first, failed, judged = group[0], [], None
        counted = not self._is_gone(first)
        if counted:
            judged = self._faults.judged(first.source.worker, error, first.source.closure.repeats)
            if judged is None and not self._is_gone(first):
                # A fault that has passed. To run the calls again would be to repeat their updates.
                error = self._copy(group) or error
        for item in group:
            reason = judged
            if reason is None and self._is_gone(item) and not (counted and item is first):
                reason = self._faults.of_loss(
                    item.source.worker, error, item.source.closure.repeats
                )
            with self._lock:
                if item.value._source is not item.source or not item.value._ready:
                    continue  # It is on the chief, or somebody else has had the call repeated.
                if reason is None and repeat and self._is_queued_again(item):
                    continue
            failed.append((item.value, reason or self._faults.of_result(item.source.worker, error)))
        return failed

    def _is_queued_again(self, item: _Item) -> bool:
        put_back = self._put_back()
        if put_back is None or not put_back(item.source.closure):
            return False
        item.value._renew()
        return True

    def _is_gone(self, item: _Item) -> bool:
        """Whether the worker has lost its memory since it computed the result."""
        task = Task("worker", item.source.worker)
        return self._members.end_of(task, item.source.life) is not None


def _is_on_worker(value: RemoteValue | None) -> bool:
    return value is not None and value._source is not None and value._ready and value._error is None


def _groups(items: list[_Item]) -> Iterator[list[_Item]]:
    """Yields the results that are copied together: all are of one worker, in one life."""
    alike: dict[tuple, list[_Item]] = collections.defaultdict(list)
    for item in items:
        parts = item.result
        is_flat = not isinstance(parts, Row) and item.value._packed is not None
        if is_flat and all(map(_is_small, parts)):
            layout = tuple((t.backing_device, t.dtype, *t.shape) for t in parts)
            alike[item.source.worker, item.source.life, layout].append(item)
        else:
            yield [item]  # A row brings the others of its buffer along.
    for group in alike.values():
        for start in range(0, len(group), _TOGETHER):
            yield group[start : start + _TOGETHER]


def _is_small(tensor: tf.Tensor) -> bool:
    dtype = tensor.dtype  # TensorFlow cannot stack quantized tensors.
    return not dtype.is_quantized and tensor.shape.num_elements() * dtype.size <= _SMALL


def _copy(group: list[_Item]) -> list[Any]:
    """Returns the results on the chief; None for one that is in a row."""
    first = group[0].result
    if isinstance(first, Row):
        first.bring()
        return [None]
    if len(group) == 1:
        return [copied(first, _tf.chief_device())]
    columns = []
    for column in zip(*(item.result for item in group), strict=True):
        with tf.device(column[0].backing_device):
            stacked = tf.stack(column)
        columns.append(tf.unstack(copied(stacked, _tf.chief_device())))
    return [list(parts) for parts in zip(*columns, strict=True)]
