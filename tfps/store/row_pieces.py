"""A table's part, copied for a snapshot piece by piece while updates go on.

The chief begins a cut in one short call. Afterwards each piece is read in a call of its own, which
holds the lock of pushes only while it copies; rows that were changed since the cut are given as
they were at the cut (`embeddings.history`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.embeddings import history
from tfps.embeddings.handles import KEY, TableHandles
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.history import HistoryHandles
from tfps.embeddings.keys import REMOVED
from tfps.store.handles import DenseHandles
from tfps.store.resources import locked, read_rows


class Contents(Protocol):
    """What the rows of one part of a table are, as functions of the part's handles.

    Attributes:
      columns: the form of the contents, [None, ...] each.
    """

    @property
    def columns(self) -> list[tf.TensorSpec]: ...

    def history_of(self, handles: Any) -> HistoryHandles:
        """The handles of the history."""

    def form(self, handles: Any) -> history.Form:
        """The form of the part."""

    def limit(self, handles: Any) -> tf.Tensor:
        """int64 scalar: how many rows there are now."""

    def counts(self, contents: Sequence[tf.Tensor]) -> tf.Tensor | None:
        """bool [n]: which rows are more than a gap; None if all of them are."""


class DenseContents:
    """The `Contents` of a table whose rows are numbered from 0.

    Attributes:
      num_rows: how many rows there are.
      columns: see `Contents`.
    """

    def __init__(self, num_rows: int, columns: Sequence[tf.TensorSpec]):
        """Notes the form.

        Args:
          num_rows: see the attribute.
          columns: of the values and of each state with rows.
        """
        self.num_rows, self.columns = num_rows, list(columns)

    def history_of(self, handles: DenseHandles) -> HistoryHandles:
        return handles.history

    def form(self, handles: DenseHandles) -> history.Form:
        def contents(rows):
            pairs = zip(handles.columns, self.columns, strict=True)
            return [read_rows(handle, spec.dtype, rows) for handle, spec in pairs]

        return history.Form([self.num_rows], [spec.dtype for spec in self.columns], contents)

    def limit(self, handles: DenseHandles) -> tf.Tensor:
        del handles
        return tf.constant(self.num_rows, tf.int64)

    def counts(self, contents: Sequence[tf.Tensor]) -> None:
        del contents


class GrowingContents:
    """The `Contents` of a part of a table that grows."""

    def __init__(self, table: HashTable):
        """Notes the table.

        Args:
          table: the functions of the part.
        """
        self._table = table
        states = [row for row in table.slot_rows if row is not None]
        width = table.settings.width
        rows = [tf.TensorSpec([None, width], tf.float32)] * (1 + len(states))
        self.columns = [tf.TensorSpec([None, 4], tf.int64), *rows]

    def history_of(self, handles: TableHandles) -> HistoryHandles:
        assert handles.history is not None
        return handles.history

    def form(self, handles: TableHandles) -> history.Form:
        return self._table.form(handles)

    def limit(self, handles: TableHandles) -> tf.Tensor:
        return self._table.used(handles)

    def counts(self, contents: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.not_equal(contents[0][:, KEY], REMOVED)


class Chunk(NamedTuple):
    """Rows of a part at a cut, as tensors on its ps.

    Attributes:
      begin, end: no other chunk of the cut has rows between these two row numbers.
      rows: int64 [n], row numbers, ascending.
      contents: [n, ...] each.
    """

    begin: int
    end: int
    rows: tf.Tensor
    contents: list[tf.Tensor]


class RowPieces:
    """One part of a table, for snapshots.

    Attributes:
      bucket: of the part.
      ps: index of the parameter server.
      row_bytes: of the contents of a row.
      renewals: how often it was lost which rows changed. A snapshot then has to have all rows.
    """

    def __init__(
        self,
        bucket: int,
        ps: int,
        contents: Contents,
        handles: Callable[[], Any],
        lock: Callable[[], tf.Tensor],
        piece_bytes: int,
    ):
        """Notes where everything is.

        Args:
          bucket, ps: see the attributes.
          contents: what the rows are.
          handles: returns the part's present handles.
          lock: returns the present mutex under which pushes are applied.
          piece_bytes: about how many bytes are copied at once.
        """
        self.bucket, self.ps, self.renewals = bucket, ps, 0
        self._contents, self._handles, self._lock = contents, handles, lock
        self.row_bytes = sum(s.dtype.size * s.shape[1:].num_elements() for s in contents.columns)
        self._rows = max(1, piece_bytes // self.row_bytes)
        self._functions: dict[str, Callable] = {}

    def begin(self, number: int) -> int:
        """Begins a cut, while nothing else is under way; returns how many rows it has.

        Args:
          number: of the cut, higher than of any cut before.
        """
        return int(self._call("begin", self._begin, _number(number)))

    def end(self, number: int) -> None:
        """Ends a cut: nothing is kept for it any more."""
        self._call("end", self._end, _number(number))

    def keep_all(self) -> None:
        """To be called before the chief changes rows by itself."""
        self.renewals += 1
        self._call("keep", self._keep)

    def chunks(self, number: int, limit: int, since: int) -> Iterator[Chunk]:
        """The rows as they were at a cut that has begun.

        The ps needs the memory of about one piece, and of the rows that are changed meanwhile.

        Args:
          number: of the cut.
          limit: what `begin` returned.
          since: rows that changed last before the cut of this number are left out; 0 for none.
        """
        waiting: list[Chunk] = []
        with tf.device(ps_device(self.ps)):
            saved = [tf.zeros([0], tf.int64), tf.zeros([0], tf.int32)]
            saved += [tf.zeros([0, *s.shape[1:]], s.dtype) for s in self._contents.columns]
        for begin in range(0, limit, self._rows):
            end = min(limit, begin + self._rows)
            numbers = [_number(n) for n in (number, begin, end, since)]
            rows, contents, saved = self._call("piece", self._piece, *numbers, saved)
            waiting.append(Chunk(begin, end, rows, contents))
            del rows, contents  # Their memory is not held while the next ones are read.
            if 2 * sum(one.rows.shape[0] for one in waiting) >= self._rows or end == limit:
                chunk, waiting = self._joined(waiting), []
                if chunk.rows.shape[0] or since == 0:
                    yield chunk
                del chunk

    def _joined(self, chunks: Sequence[Chunk]) -> Chunk:
        if len(chunks) == 1:
            return chunks[0]
        with tf.device(ps_device(self.ps)):
            rows = tf.concat([one.rows for one in chunks], 0)
            columns = zip(*(one.contents for one in chunks), strict=True)
            contents = [tf.concat(column, 0) for column in columns]
        return Chunk(chunks[0].begin, chunks[-1].end, rows, contents)

    # On the ps.

    def _begin(self, lock, handles, number):
        own, form = self._contents.history_of(handles), self._contents.form(handles)
        limit = self._contents.limit
        return locked(lock, lambda: history.begun(own, form, number, limit(handles)))

    def _end(self, lock, handles, number):
        own, form = self._contents.history_of(handles), self._contents.form(handles)
        return locked(lock, lambda: history.ended(own, form, number))

    def _keep(self, lock, handles):
        own, form = self._contents.history_of(handles), self._contents.form(handles)

        def keep():
            rows = tf.range(self._contents.limit(handles))
            with tf.control_dependencies(history.keep(own, form, rows)):
                return tf.constant(True)

        return locked(lock, keep)

    def _piece(self, lock, handles, number, begin, end, since, saved):
        own, form = self._contents.history_of(handles), self._contents.form(handles)
        held = tf.raw_ops.MutexLock(mutex=lock)
        with tf.control_dependencies([held]):
            piece, done = history.read(own, form, number, (begin, end), since, saved)
        with tf.control_dependencies([done]):
            tf.raw_ops.ConsumeMutexLock(mutex_lock=held)
        rows, contents, later = history.settled(piece, end, since)
        counts = self._contents.counts(contents)
        if counts is not None:
            # A snapshot that has all rows needs no gaps.
            kept = tf.where(tf.logical_or(counts, since > 0))[:, 0]
            rows, contents = tf.gather(rows, kept), [tf.gather(one, kept) for one in contents]
        return rows, contents, later

    def _call(self, name: str, function: Callable, *args: Any) -> Any:
        """Calls a function of the lock and the handles on the part's ps."""
        given = self._lock(), self._handles(), *args
        if name not in self._functions:
            forms = tf.nest.map_structure(_of_any_length, args)
            traced = tf.function(function, autograph=False)
            self._functions[name] = traced.get_concrete_function(*given[:2], *forms)
        with tf.device(ps_device(self.ps)):
            return self._functions[name](*given)


def _number(n: int) -> tf.Tensor:
    return tf.constant(n, tf.int64)


def _of_any_length(t: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *t.shape[1:]] if t.shape.rank else [], t.dtype)
