"""One part of a table that grows: finding, letting in, writing and giving back rows.

An index (TensorFlow's `DenseHashTable`) leads from a key to a reference, and the reference to a row
in ordinary resource variables. Only one function at a time may write: on a server the loop that
applies pushes, in a process without servers the training step. Any number may read meanwhile: a
reader looks at the key of a row after it has read the row, and a writer takes the key away before
it gives the row to another one and writes the new key after the new row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfps.embeddings import history, index, room, row_values, segments, sketch
from tfps.embeddings.handles import (
    COUNT,
    KEY,
    LAST,
    META_WIDTH,
    REF,
    Marks,
    TableHandles,
    Where,
)
from tfps.embeddings.settings import LARGEST, TableSettings


class Inserted(NamedTuple):
    """Rows for a push.

    Attributes:
      where: of the keys that have a row now.
      taken: int64 [m], which of the keys these are.
    """

    where: Where
    taken: tf.Tensor


class Chosen(NamedTuple):
    """Some keys, those that updates named most often.

    Attributes:
      least: int64 scalar; all that were named more often are chosen.
      ties: int64 scalar, how many are chosen of those that were named just so often.
    """

    least: tf.Tensor
    ties: tf.Tensor

    def among(self, counts: tf.Tensor) -> tf.Tensor:
        """int64 [m]: the positions of the chosen ones in counts, int64 [n]."""
        equal = tf.equal(counts, self.least)
        early = tf.cumsum(tf.cast(equal, tf.int64)) <= self.ties
        return tf.where(tf.logical_or(counts > self.least, tf.logical_and(equal, early)))[:, 0]


class HashTable:
    """The functions of one part; it holds no state, and every function takes the handles.

    The caller enters the device of the part. Keys are those of `keys_of`.

    Attributes:
      settings: of the table.
      ends: rows with one segment, with two, and so on; see `segments.ends_of`.
      slot_rows: for each state of the optimizer, the row that it begins with, float32 [width], or
        None for a state that is one number for all rows.
    """

    def __init__(
        self,
        settings: TableSettings,
        servers: int = 1,
        slot_rows: Sequence[np.ndarray | None] = (),
    ):
        """Computes the sizes.

        Args:
          settings: of the table.
          servers: how many parts the table has.
          slot_rows: see the attribute.
        """
        self.settings, self.slot_rows = settings, list(slot_rows)
        first = settings.reserved(servers)
        limit = settings.capacity or LARGEST
        self.ends = segments.ends_of(first, limit)
        self.sketch_size = sketch.size_of(first) if settings.admit_after > 1 else 0
        self.first_buckets = index.buckets_for(first)
        self._keep: Callable | None = None

    # For a reader.

    def find(self, handles: TableHandles, keys: tf.Tensor) -> Where:
        """Where the rows of keys are; nothing is let in.

        Args:
          handles: of the part.
          keys: int64 [n].
        """
        refs = index.find(handles.index, keys)
        missing = refs < 0
        return Where(keys, index.slots_of(refs), refs, missing, missing)

    def read(self, handles: TableHandles, keys: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        """float32 [n, width]: the rows of keys; of a key without one, what its row would begin as.

        Args:
          handles: of the part.
          keys: int64 [n].
          now: int64 scalar, the number of the last update.
        """
        where = self.find(handles, keys)
        rows = self._values(handles, where.slots)
        with tf.control_dependencies([rows]):
            meta = segments.gather(handles.meta, self.ends, tf.int64, where.slots)
        same = tf.logical_and(tf.equal(meta[:, KEY], keys), tf.equal(meta[:, REF], where.refs))
        there = tf.logical_and(same, tf.logical_not(self._is_expired(meta[:, LAST], now)))
        return self._or_initial(rows, tf.logical_not(there), keys)

    # For the one writer.

    def insert(
        self,
        handles: TableHandles,
        keys: tf.Tensor,
        now: tf.Tensor,
        admits_all: bool = False,
    ) -> Inserted:
        """Finds rows for keys, and notes that they were named.

        What is let in is found by nobody before `commit`.

        Args:
          handles: of the part.
          keys: int64 [n], none of them twice.
          now: int64 scalar, the number of the update.
          admits_all: whether keys are let in that were not seen often enough.
        """
        where = self.find(handles, keys)
        meta = segments.gather(handles.meta, self.ends, tf.int64, where.slots)
        stale = tf.logical_and(tf.logical_not(where.new), self._is_expired(meta[:, LAST], now))
        count = tf.where(stale, tf.zeros_like(keys), meta[:, COUNT]) + 1
        known = tf.where(tf.logical_not(where.new))[:, 0]
        noted = self._rows_of_meta(where.keys, where.refs, count, now)
        named = tf.gather(where.slots, known)
        with tf.control_dependencies(self._kept(handles, named)):
            touched = segments.scatter(handles.meta, self.ends, named, tf.gather(noted, known))
        missing = tf.where(where.new)[:, 0]
        with tf.control_dependencies(_given(touched)):
            marks = _read_marks(handles)
            nothing = tf.zeros([0], tf.int64)
            granted, slots, row = tf.cond(
                tf.size(missing) > 0,
                lambda: self._grant(handles, keys, missing, now, marks, admits_all),
                lambda: (nothing, nothing, marks),
            )
        old = Marks.of(marks)
        with tf.control_dependencies(_given(_write_marks(handles, row))):
            stamps = old.stamp + 1 + tf.range(tf.size(slots, tf.int64))
            given = index.refs_of(slots, stamps)
            at = granted[:, None]
            refs = tf.tensor_scatter_nd_update(where.refs, at, given)
            rows = tf.tensor_scatter_nd_update(where.slots, at, slots)
        fresh = tf.logical_or(stale, where.new)
        taken = tf.where(refs >= 0)[:, 0]
        whole = Where(keys, rows, refs, fresh, where.new)
        return Inserted(Where(*(tf.gather(one, taken) for one in whole)), taken)

    def gather(self, handles: TableHandles, where: Where, state: int | None = None) -> tf.Tensor:
        """float32 [n, width]: rows that the writer computes with.

        Args:
          handles: of the part.
          where: of `insert`.
          state: which state of the optimizer; None for the rows themselves.
        """
        if state is None:
            rows = self._values(handles, where.slots)
            return self._or_initial(rows, where.fresh, where.keys)
        begins = self.slot_rows[state]
        assert begins is not None
        kept = segments.gather(handles.slots[state], self.ends, tf.float32, where.slots)
        return tf.where(where.fresh[:, None], tf.constant(begins[None]), kept)

    def update(
        self,
        handles: TableHandles,
        where: Where,
        rows: tf.Tensor,
        seed: tf.Tensor,
        state: int | None = None,
    ) -> list[tf.Operation]:
        """Replaces rows; see `gather`.

        Args:
          handles, where, state: see `gather`.
          rows: float32 [n, width].
          seed: int64 scalar, for rounding.

        Returns:
          The operations that write.
        """
        families, kept = handles.values, [rows]
        if state is None:
            kept = row_values.encoded(rows, self.settings.row_dtype, seed)
        else:
            families = [handles.slots[state]]
        return [
            segments.scatter(family, self.ends, where.slots, one)
            for family, one in zip(families, kept, strict=True)
        ]

    def commit(
        self,
        handles: TableHandles,
        where: Where,
        now: tf.Tensor,
        counts: tf.Tensor | None = None,
        lasts: tf.Tensor | None = None,
    ) -> list[tf.Operation]:
        """Lets readers find what `insert` has let in; to be run after the rows are written.

        It then does its share of what is done little by little: looking for expired rows, and
        making a new index.

        Args:
          handles, where: of `insert`.
          now: int64 scalar, as for `insert`.
          counts, lasts: int64 [n], what is noted of each key in place of what `insert` has noted.

        Returns:
          The operations that write.
        """
        new = tf.where(where.new if counts is None else tf.ones_like(where.new))[:, 0]
        new_keys, refs = tf.gather(where.keys, new), tf.gather(where.refs, new)
        count = tf.ones_like(new) if counts is None else tf.gather(counts, new)
        last = now if lasts is None else tf.gather(lasts, new)
        noted = self._rows_of_meta(new_keys, refs, count, last)
        slots = tf.gather(where.slots, new)
        done = segments.scatter(handles.meta, self.ends, slots, noted)
        with tf.control_dependencies(_given(done)):
            marks = Marks.of(_read_marks(handles))
            done = index.insert(handles, marks, new_keys, refs)
        with tf.control_dependencies(_given(done)):
            row = self._tended(handles, marks, tf.size(where.keys), now)
            return _given(_write_marks(handles, row))

    def put(
        self,
        handles: TableHandles,
        keys: tf.Tensor,
        rows: Mapping[int | None, tf.Tensor],
        counts: tf.Tensor,
        lasts: tf.Tensor,
        now: tf.Tensor,
    ) -> list[tf.Operation]:
        """Lets in keys with all that is kept of them, as `export` found them.

        Args:
          handles: of the part.
          keys: int64 [n], none of them twice.
          rows: state of the optimizer, or None for the rows themselves -> float32 [n, width]. What
            is missing stays as it is, and begins anew for a new key.
          counts, lasts: int64 [n], what is noted of the keys.
          now: int64 scalar, the number of the last update.

        Returns:
          The operations that write.
        """
        where, taken = self.insert(handles, keys, now, admits_all=True)
        states = [None, *(k for k, row in enumerate(self.slot_rows) if row is not None)]
        written = []
        for state in states:
            given = rows.get(state)
            kept = self.gather(handles, where, state)
            new = kept if given is None else tf.gather(given, taken)
            written += self.update(handles, where, new, now, state)
        with tf.control_dependencies(_some(written)):
            counts, lasts = tf.gather(counts, taken), tf.gather(lasts, taken)
            return self.commit(handles, where, now, counts, lasts)

    def export(
        self,
        handles: TableHandles,
        states: Sequence[int | None],
        span: tuple[tf.Tensor, tf.Tensor] | None = None,
        chosen: Chosen | None = None,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The keys of a span of row numbers, with what is noted of them, and their rows.

        Args:
          handles: of the part; nobody may write meanwhile.
          states: which rows: states of the optimizer, or None for the rows themselves.
          span: int64 scalars, the first row number and the one behind the last; None for all.
          chosen: which of the keys; None for all.

        Returns:
          (int64 [n, 4], the columns of `handles.META_WIDTH`; float32 [n, width] for each of
          `states`).
        """
        slots, meta = self._owned(handles, span)
        if chosen is not None:
            kept = chosen.among(meta[:, COUNT])
            meta, slots = tf.gather(meta, kept), tf.gather(slots, kept)
        found = []
        for state in states:
            if state is None:
                found.append(self._values(handles, slots))
            else:
                family = handles.slots[state]
                found.append(segments.gather(family, self.ends, tf.float32, slots))
        return meta, found

    def contents(self, handles: TableHandles, slots: tf.Tensor) -> list[tf.Tensor]:
        """All that a snapshot has of rows, whether they have a key or not.

        Args:
          handles: of the part.
          slots: int64 [n], row numbers.

        Returns:
          [int64 [n, 4], the columns of `handles.META_WIDTH`; float32 [n, width], the rows; the same
          for each state of the optimizer that has rows].
        """
        found = [segments.gather(handles.meta, self.ends, tf.int64, slots)]
        found.append(self._values(handles, slots))
        kept = [family for family in handles.slots if family]
        return found + [segments.gather(f, self.ends, tf.float32, slots) for f in kept]

    def form(self, handles: TableHandles) -> history.Form:
        """The form of the table's history."""
        states = [row for row in self.slot_rows if row is not None]
        dtypes = [tf.int64, *[tf.float32] * (1 + len(states))]
        return history.Form(self.ends, dtypes, lambda slots: self.contents(handles, slots))

    def used(self, handles: TableHandles) -> tf.Tensor:
        """int64 scalar: how many rows were ever given out."""
        return Marks.of(_read_marks(handles)).used

    def counts(self, handles: TableHandles, span: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """int64 [n]: how many updates named each key of a span of row numbers; see `export`."""
        return self._owned(handles, span)[1][:, COUNT]

    def _owned(self, handles, span):
        """(int64 [n], the row numbers in a span that have a key; int64 [n, 4], their notes)."""
        used = Marks.of(_read_marks(handles)).used
        begin, end = (tf.constant(0, tf.int64), used) if span is None else span
        numbers = tf.range(begin, tf.minimum(end, used))
        meta = segments.gather(handles.meta, self.ends, tf.int64, numbers)
        owned = tf.where(room.is_owned(meta))[:, 0]
        return tf.gather(numbers, owned), tf.gather(meta, owned)

    def clear(self, handles: TableHandles) -> list[tf.Operation]:
        """Takes out all keys, and forgets which were seen; returns the operations that write."""
        done = [index.clear(handles.index, self.first_buckets)]
        done.append(index.clear(handles.scratch, index.SMALLEST))
        parts = Marks.of(_read_marks(handles)).parts
        first = Marks.of(tf.constant(first_marks(self), tf.int64))
        done.append(_write_marks(handles, first._replace(parts=parts).row()))
        if handles.sketch is not None:
            none = tf.zeros([self.sketch_size], tf.uint8)
            done.append(tf.raw_ops.AssignVariableOp(resource=handles.sketch, value=none))
        return _some(done)

    def keep_all(self, handles: TableHandles) -> list[tf.Operation]:
        """What has to be over before all rows change; see `history.keep`."""
        return self._kept(handles, tf.range(self.used(handles)))

    # Within.

    def _values(self, handles, slots):
        forms = row_values.variables_of(self.settings.row_dtype, self.settings.width)
        kept = [
            segments.gather(family, self.ends, dtype, slots)
            for family, (_, dtype) in zip(handles.values, forms, strict=True)
        ]
        return row_values.decoded(kept, self.settings.row_dtype)

    def _or_initial(self, rows, fresh, keys):
        """Rows, and in place of those that are `fresh` what the rows of their keys begin as."""
        width = self.settings.width
        which = tf.where(fresh)

        def filled():
            initial = self.settings.initial.rows(tf.gather(keys, which[:, 0]), width)
            return tf.tensor_scatter_nd_update(rows, which, initial)

        rows = tf.cond(tf.size(which) > 0, filled, lambda: rows)
        rows.set_shape([None, width])
        return rows

    def _kept(self, handles, slots):
        """What has to be over before rows change; see `history.keep`."""
        if handles.history is None:
            return []
        if self._keep is None:
            # It is needed in several places, and takes time to be traced.
            self._keep = tf.function(self._keep_rows, autograph=False)
        return [self._keep(handles, slots)]

    def _keep_rows(self, handles, slots):
        done = history.keep(handles.history, self.form(handles), slots)
        with tf.control_dependencies(done):
            return tf.constant(True)

    def _is_expired(self, last, now):
        if self.settings.expire_after is None:
            return tf.zeros_like(last, tf.bool)
        return now - last > self.settings.expire_after

    def _rows_of_meta(self, keys, refs, counts, last):
        columns = [keys, refs, counts, tf.broadcast_to(last, tf.shape(keys))]
        rows = tf.stack(columns, 1)
        rows.set_shape([None, META_WIDTH])
        return rows

    def _grant(self, handles, keys, missing, now, row, admits_all):
        """Rows for keys without one.

        Returns:
          (int64 [g], which of the keys get a row; int64 [g], the row numbers; the marks).
        """
        if self.sketch_size and not admits_all:
            seen = sketch.sightings(handles.sketch, self.sketch_size, tf.gather(keys, missing))
            missing = tf.boolean_mask(missing, seen >= self.settings.admit_after)
        wanted = tf.size(missing, tf.int64)
        marks = Marks.of(row)
        lacking = wanted - marks.free - (self.ends[-1] - marks.used)
        evicted, row = tf.cond(
            lacking > 0,
            lambda: self._evicted(handles, marks, lacking, now),
            lambda: (tf.zeros([0], tf.int64), row),
        )
        marks = Marks.of(row)
        slots, marks = room.taken(handles, marks, wanted, self.ends)
        slots = tf.concat([slots, evicted], 0)[:wanted]
        needed = [marks.used > end for end in self.ends[:-1]]
        grown = [
            self._grow(handles, k, tf.logical_and(needs, marks.parts <= k))
            for k, needs in enumerate(needed, start=1)
        ]
        parts = 1 + tf.add_n([tf.zeros([], tf.int64), *(tf.cast(n, tf.int64) for n in needed)])
        marks = marks._replace(parts=tf.maximum(marks.parts, parts))
        granted = tf.size(slots, tf.int64)
        marks = marks._replace(
            stamp=marks.stamp + granted, refused=marks.refused + wanted - granted
        )
        with tf.control_dependencies(grown):
            kept = self._kept(handles, slots)
        with tf.control_dependencies([*grown, *kept]):
            return missing[:granted], tf.identity(slots), marks.row()

    def _evicted(self, handles, marks, lacking, now):
        """Takes rows from keys; returns (their numbers, the marks)."""
        if self.settings.evict == "none":
            return tf.zeros([0], tf.int64), marks.row()
        candidates = room.window(marks.hand, room.sample_of(lacking), marks.used)
        meta = segments.gather(handles.meta, self.ends, tf.int64, candidates)
        score = room.worth(meta, self.settings.evict, now)
        expired = self._is_expired(meta[:, LAST], now)
        first = tf.logical_and(expired, score < room.KEPT)
        score = tf.where(first, tf.zeros_like(score) - 1, score)
        chosen = room.least(score, lacking)
        hand = tf.math.floormod(marks.hand + tf.size(candidates, tf.int64), marks.used)
        slots = tf.gather(candidates, chosen)
        marks = marks._replace(hand=hand, evicted=marks.evicted + tf.size(slots, tf.int64))
        row = self._erased(handles, marks, slots, tf.gather(meta[:, KEY], chosen))
        return slots, row

    def _erased(self, handles, marks, slots, keys):
        """Takes keys out of the index, and rows from their keys; returns the marks."""
        removed = index.remove(handles, marks, keys)
        gone = room.unowned(slots)
        with tf.control_dependencies(self._kept(handles, slots)):
            done = segments.scatter(handles.meta, self.ends, slots, gone)
        marks = marks._replace(erased=marks.erased + tf.size(keys, tf.int64))
        with tf.control_dependencies([*removed, *_given(done)]):
            return tf.identity(marks.row())

    def _grow(self, handles, k, needed):
        """Gives segment `k` its rows, if it is needed."""
        rows = segments.sizes_of(self.ends)[k]
        width = self.settings.width
        families = [(handles.meta, (META_WIDTH,), tf.int64), (handles.free, (), tf.int64)]
        forms = row_values.variables_of(self.settings.row_dtype, width)
        families += [(f, *form) for f, form in zip(handles.values, forms, strict=True)]
        families += [(f, (width,), tf.float32) for f in handles.slots if f]
        if handles.history is not None:
            families.append((handles.history.marks, (), tf.int32))

        def grow():
            done = [segments.fill(f[k], rows, shape, dtype) for f, shape, dtype in families]
            with tf.control_dependencies(_some(done)):
                return tf.constant(True)

        return tf.cond(needed, grow, lambda: tf.constant(False))

    def _tended(self, handles, marks, pushed, now):
        """Does a share of what is done little by little; returns the marks."""
        if self.settings.expire_after is not None:
            marks = Marks.of(self._swept(handles, marks, now))

        def notes_of(slots):
            return segments.gather(handles.meta, self.ends, tf.int64, slots)

        return index.renewed(handles, marks, pushed, notes_of)

    def _swept(self, handles, marks, now):
        """Gives back the expired rows in a share of the table, of which a quarter of the time of
        expiry needs all; returns the marks."""
        share = 4 * marks.used // self.settings.expire_after + 64
        candidates = room.window(marks.swept, share, marks.used)
        meta = segments.gather(handles.meta, self.ends, tf.int64, candidates)
        owned = room.is_owned(meta)
        chosen = tf.where(tf.logical_and(owned, self._is_expired(meta[:, LAST], now)))[:, 0]
        after = marks.swept + tf.size(candidates, tf.int64)
        marks = marks._replace(swept=tf.math.floormod(after, tf.maximum(marks.used, 1)))

        def give_back():
            slots = tf.gather(candidates, chosen)
            row = self._erased(handles, marks, slots, tf.gather(meta[:, KEY], chosen))
            return room.given_back(handles, Marks.of(row), slots, self.ends).row()

        return tf.cond(tf.size(chosen) > 0, give_back, marks.row)


def _read_marks(handles):
    return tf.raw_ops.ReadVariableOp(resource=handles.marks, dtype=tf.int64)


def _write_marks(handles, row):
    return tf.raw_ops.AssignVariableOp(resource=handles.marks, value=row)


def first_marks(table: HashTable) -> list[int]:
    """`Marks` of a part without keys."""
    marks = Marks(**dict.fromkeys(Marks._fields, 0))
    return list(marks._replace(parts=1, moved=-1, buckets=table.first_buckets))


def _given(done):
    return _some([done])


def _some(done):
    """The operations among these; outside of a graph there are none."""
    return [one for one in done if one is not None]
