"""What rows were at a cut that is still being written, and which rows changed since an earlier one.

A large table is copied for a snapshot piece by piece, while updates go on. Whoever is about to
change rows calls `keep` first. It saves the rows that the open cut still needs as they were, each
of them once, and marks the rows with the number of the newest cut. `read` then copies a piece of
the table, and `settled` puts the saved rows in place of those that have changed. The marks also
tell which rows a snapshot has to have if an earlier one has the others.

All functions make operations on the device of the table, and only one of them may run at a time: on
a server they run under the lock of pushes.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tfps.embeddings import segments
from tfps.embeddings.segments import Segments

# Queues need names that no other queue of the process has.
_names = itertools.count()


class HistoryHandles(NamedTuple):
    """The resource handles of a history.

    Attributes:
      cut: of `Cut`, int64 [3].
      marks: segments of int32 [rows]: the number of the newest cut when the row last changed.
      saved: of a queue of rows as they were: [their numbers, their marks, their contents].
    """

    cut: tf.Tensor
    marks: list[tf.Tensor]
    saved: tf.Tensor


class Form(NamedTuple):
    """What a table is made of.

    Attributes:
      ends: rows with one segment, with two, and so on; see `segments.ends_of`.
      dtypes: of its contents.
      contents: from row numbers, int64 [n], to all that is kept of these rows, [n, ...] each.
    """

    ends: Sequence[int]
    dtypes: Sequence[tf.DType]
    contents: Callable[[tf.Tensor], list[tf.Tensor]]


class Cut(NamedTuple):
    """The newest cut; int64 scalars.

    Attributes:
      number: of the cut; later cuts have higher numbers.
      next: the first row that is not copied yet; `limit` when the cut is written.
      limit: how many rows the table had.
    """

    number: tf.Tensor
    next: tf.Tensor
    limit: tf.Tensor

    @classmethod
    def read(cls, handles: HistoryHandles) -> "Cut":
        """Reads the newest cut."""
        row = tf.raw_ops.ReadVariableOp(resource=handles.cut, dtype=tf.int64)
        return cls(*tf.unstack(row, num=3))

    def write(self, handles: HistoryHandles) -> tf.Operation:
        """Replaces the newest cut."""
        return tf.raw_ops.AssignVariableOp(resource=handles.cut, value=tf.stack([*self]))


class History(tf.Module):
    """The variables of a history, on the device on which the constructor ran."""

    def __init__(self, ends: Sequence[int], dtypes: Sequence[tf.DType], number: int = 0):
        """Marks all rows as changed after a cut.

        Args:
          ends, dtypes: see `Form`.
          number: of the cut.
        """
        super().__init__()
        self._cut = tf.Variable(tf.constant([number, 0, 0], tf.int64), trainable=False)
        self._marks = Segments(ends, (), tf.int32).parts
        first = tf.fill([ends[0]], tf.constant(number, tf.int32))
        tf.raw_ops.AssignVariableOp(resource=self._marks[0].handle, value=first)
        self._saved = tf.raw_ops.FIFOQueueV2(
            component_types=[tf.int64, tf.int32, *dtypes],
            shared_name=f"tfps_history_{next(_names)}",
        )

    @property
    def handles(self) -> HistoryHandles:
        """The resource handles."""
        return HistoryHandles(self._cut.handle, [m.handle for m in self._marks], self._saved)


def keep(handles: HistoryHandles, form: Form, rows: tf.Tensor) -> list[tf.Operation]:
    """Notes that rows change; to be run before that.

    Args:
      handles: of the history.
      form: of the table.
      rows: int64 [n], numbers of rows, none of them twice.

    Returns:
      Operations that have to be over before the rows change.
    """
    cut = Cut.read(handles)
    number = tf.cast(cut.number, tf.int32)
    marks = segments.gather(handles.marks, form.ends, tf.int32, rows)
    is_needed = tf.logical_and(rows >= cut.next, rows < cut.limit)
    lost = tf.logical_and(is_needed, marks < number)

    def save():
        which = tf.where(lost)[:, 0]
        at = tf.gather(rows, which)
        saved = [at, tf.gather(marks, which), *form.contents(at)]
        done = tf.raw_ops.QueueEnqueueV2(handle=handles.saved, components=saved)
        with tf.control_dependencies([done]):
            return tf.constant(True)

    saved = tf.cond(tf.reduce_any(lost), save, lambda: tf.constant(False))
    with tf.control_dependencies([saved]):
        news = tf.fill(tf.shape(rows), number)
        return [segments.scatter(handles.marks, form.ends, rows, news)]


def begun(handles: HistoryHandles, form: Form, number: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    """Begins a cut, at this moment; returns how many rows it has.

    What was saved for an earlier cut is forgotten.

    Args:
      handles, form: see `keep`.
      number: int64 scalar, higher than that of any cut before.
      limit: int64 scalar, how many rows there are.
    """
    with tf.control_dependencies([_emptied(handles, form)]):
        done = Cut(number, tf.zeros_like(limit), limit).write(handles)
    with tf.control_dependencies([done]):
        return tf.identity(limit)


def ended(handles: HistoryHandles, form: Form, number: tf.Tensor) -> tf.Tensor:
    """Ends a cut, if it is still the newest: nothing is saved for it any more."""
    cut = Cut.read(handles)

    def end():
        with tf.control_dependencies([_emptied(handles, form)]):
            done = cut._replace(next=cut.limit).write(handles)
        with tf.control_dependencies([done]):
            return tf.constant(True)

    return tf.cond(tf.equal(cut.number, number), end, lambda: tf.constant(False))


class Piece(NamedTuple):
    """Rows of a span, read under the lock of pushes; see `read`.

    Attributes:
      rows: int64 [n], the numbers of rows that may have to be written.
      marks: int32 [n], their marks.
      contents: [n, ...] each.
      saved: what was saved since the piece before; arrays of tensors [numbers, marks, contents].
    """

    rows: tf.Tensor
    marks: tf.Tensor
    contents: list[tf.Tensor]
    saved: list[tf.TensorArray]


def read(
    handles: HistoryHandles,
    form: Form,
    number: tf.Tensor,
    span: tuple[tf.Tensor, tf.Tensor],
    since: tf.Tensor,
    saved: Sequence[tf.Tensor],
) -> tuple[Piece, tf.Tensor]:
    """Reads the next piece of a cut; whoever changes its rows need not save them afterwards.

    Args:
      handles, form: see `keep`.
      number: int64 scalar, of the cut; it is an error of the call if a later one has begun.
      span: int64 scalars, the first row and the one behind the last.
      since: int64 scalar; of rows that changed last before the cut of this number, nothing is read.
      saved: what was saved before the last piece and is of later rows.

    Returns:
      (the piece; a tensor that exists when all of it is read).
    """
    cut = Cut.read(handles)
    is_newest = tf.debugging.Assert(
        tf.equal(cut.number, number), ["a later snapshot has begun", cut.number, number]
    )
    with tf.control_dependencies([is_newest]):
        begin, end = span
        every = tf.range(begin, end)
        marks = segments.gather(handles.marks, form.ends, tf.int32, every)
        found = tf.where(tf.cast(marks, tf.int64) >= since)[:, 0]
        rows, marks = tf.gather(every, found), tf.gather(marks, found)
        kept = form.contents(rows)
        taken = _taken(handles, saved)
        with tf.control_dependencies([marks, *kept, *(t.flow for t in taken)]):
            done = cut._replace(next=end).write(handles)
    with tf.control_dependencies([done]):
        return Piece(rows, marks, kept, taken), tf.identity(end)


def settled(
    piece: Piece, end: tf.Tensor, since: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
    """What rows of a piece were at its cut; no lock is needed.

    Args:
      piece: of `read`.
      end: int64 scalar, the row behind the last of the piece.
      since: see `read`.

    Returns:
      (int64 [n], row numbers; their contents; what was saved of later rows).
    """
    saved = [one.concat() for one in piece.saved]
    is_mine = saved[0] < end
    mine, later = [
        [tf.boolean_mask(one, which) for one in saved]
        for which in (is_mine, tf.logical_not(is_mine))
    ]
    at = tf.searchsorted(piece.rows, mine[0], out_type=tf.int64)[:, None]
    now = [piece.marks, *piece.contents]
    marks, *contents = [
        tf.tensor_scatter_nd_update(one, at, before)
        for one, before in zip(now, mine[1:], strict=True)
    ]
    kept = tf.where(tf.cast(marks, tf.int64) >= since)[:, 0]
    return tf.gather(piece.rows, kept), [tf.gather(one, kept) for one in contents], later


def _taken(handles: HistoryHandles, saved: Sequence[tf.Tensor]) -> list[tf.TensorArray]:
    """Takes everything out of the queue, without copying it, to what was saved before."""
    count = tf.raw_ops.QueueSizeV2(handle=handles.saved)
    shapes = [tf.TensorShape([None, *one.shape[1:]]) for one in saved]
    arrays = [
        tf.TensorArray(one.dtype, count + 1, element_shape=shape, infer_shape=False).write(0, one)
        for one, shape in zip(saved, shapes, strict=True)
    ]

    def one_more(k, *arrays):
        entry = tf.raw_ops.QueueDequeueV2(
            handle=handles.saved, component_types=[one.dtype for one in saved]
        )
        for part, shape in zip(entry, shapes, strict=True):
            part.set_shape(shape)
        return k + 1, *(a.write(k, part) for a, part in zip(arrays, entry, strict=True))

    _, *arrays = tf.while_loop(
        lambda k, *_: k <= count, one_more, [tf.constant(1), *arrays], parallel_iterations=1
    )
    return arrays


def _emptied(handles: HistoryHandles, form: Form) -> tf.Tensor:
    """Forgets what is in the queue; returns a tensor that exists afterwards."""

    def one_less(k):
        entry = tf.raw_ops.QueueDequeueV2(
            handle=handles.saved, component_types=[tf.int64, tf.int32, *form.dtypes]
        )
        with tf.control_dependencies(entry):
            return k - 1

    count = tf.raw_ops.QueueSizeV2(handle=handles.saved)
    return tf.while_loop(lambda k: k > 0, one_less, [count], parallel_iterations=1)[0]
