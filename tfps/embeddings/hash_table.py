"""One part of a table that grows: finding, letting in and writing rows.

An index (TensorFlow's `DenseHashTable`) leads from a key to a reference, and the reference to a row
in ordinary resource variables. Only one function at a time may write: on a server the loop that
applies pushes, in a process without servers the training step. Any number may read meanwhile: a
reader looks at the key of a row after it has read the row, and a writer takes the key away before
it gives the row to another one and writes the new key after the new row.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tfps.embeddings import granting, index, row_values, segments
from tfps.embeddings.handles import COUNT, KEY, LAST, META_WIDTH, REF, Marks, TableHandles, Where
from tfps.embeddings.layout import Layout, read_marks, write_marks, written


class Inserted(NamedTuple):
    """Rows for a push.

    Attributes:
      where: of the keys that have a row now.
      taken: int64 [m], which of the keys these are.
    """

    where: Where
    taken: tf.Tensor


class HashTable(Layout):
    """The functions of one part. Keys are those of `keys_of`."""

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
        rows = self.rows(handles, where.slots)
        with tf.control_dependencies([rows]):
            meta = self.notes(handles, where.slots)
        same = tf.logical_and(tf.equal(meta[:, KEY], keys), tf.equal(meta[:, REF], where.refs))
        there = tf.logical_and(same, tf.logical_not(self.is_expired(meta[:, LAST], now)))
        return self._or_initial(rows, tf.logical_not(there), keys)

    # For the one writer.

    def insert(
        self,
        handles: TableHandles,
        keys: tf.Tensor,
        now: tf.Tensor,
        admits_all: bool = False,
        again: tf.Tensor | None = None,
    ) -> Inserted:
        """Finds rows for keys, and notes that they were named.

        What is let in is found by nobody before `commit`.

        Args:
          handles: of the part.
          keys: int64 [n], none of them twice.
          now: int64 scalar, the number of the update.
          admits_all: whether keys are let in that were not seen often enough.
          again: bool [n], which keys the update has named before: those are not counted again, nor
            let in; None for none.
        """
        where = self.find(handles, keys)
        meta = self.notes(handles, where.slots)
        stale = tf.logical_and(tf.logical_not(where.new), self.is_expired(meta[:, LAST], now))
        count = tf.where(stale, tf.zeros_like(keys), meta[:, COUNT])
        count += 1 if again is None else tf.cast(tf.logical_not(again), tf.int64)
        known = tf.where(tf.logical_not(where.new))[:, 0]
        noted = self._rows_of_meta(where.keys, where.refs, count, now)
        named = tf.gather(where.slots, known)
        with tf.control_dependencies(self.kept(handles, named)):
            touched = segments.scatter(handles.meta, self.ends, named, tf.gather(noted, known))
        asks = where.new if again is None else tf.logical_and(where.new, tf.logical_not(again))
        missing = tf.where(asks)[:, 0]
        with tf.control_dependencies(written([touched])):
            marks = read_marks(handles)
            nothing = tf.zeros([0], tf.int64)
            granted, slots, row = tf.cond(
                tf.size(missing) > 0,
                lambda: granting.grant(self, handles, keys, missing, now, marks, admits_all),
                lambda: (nothing, nothing, marks),
            )
        old = Marks.of(marks)
        with tf.control_dependencies(written([write_marks(handles, row)])):
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
            rows = self.rows(handles, where.slots)
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
        with tf.control_dependencies(written([done])):
            marks = Marks.of(read_marks(handles))
            done = index.insert(handles, marks, new_keys, refs)
        with tf.control_dependencies(written([done])):
            row = self._tended(handles, marks, tf.size(where.keys), now)
            return written([write_marks(handles, row)])

    def put(
        self,
        handles: TableHandles,
        keys: tf.Tensor,
        rows: Mapping[int | None, tf.Tensor],
        counts: tf.Tensor,
        lasts: tf.Tensor,
        now: tf.Tensor,
    ) -> list[tf.Operation]:
        """Lets in keys with all that is kept of them, as `exports.export` found them.

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
        writes = []
        for state in states:
            given = rows.get(state)
            kept = self.gather(handles, where, state)
            new = kept if given is None else tf.gather(given, taken)
            writes += self.update(handles, where, new, now, state)
        with tf.control_dependencies(written(writes)):
            counts, lasts = tf.gather(counts, taken), tf.gather(lasts, taken)
            return self.commit(handles, where, now, counts, lasts)

    def used(self, handles: TableHandles) -> tf.Tensor:
        """int64 scalar: how many rows were ever given out."""
        return Marks.of(read_marks(handles)).used

    def remove(self, handles: TableHandles, keys: tf.Tensor) -> list[tf.Operation]:
        """Takes out keys; returns the operations that write.

        Args:
          handles: of the part.
          keys: int64 [n], none of them twice; those that have no row are let be.
        """
        where = self.find(handles, keys)
        there = tf.where(tf.logical_not(where.new))[:, 0]
        slots, keys = tf.gather(where.slots, there), tf.gather(keys, there)
        marks = granting.removed(self, handles, Marks.of(read_marks(handles)), slots, keys)
        return written([write_marks(handles, marks.row())])

    def clear(self, handles: TableHandles) -> list[tf.Operation]:
        """Takes out all keys, and forgets which were seen; returns the operations that write."""
        done = [index.clear(handles.index, self.first_buckets)]
        done.append(index.clear(handles.scratch, index.SMALLEST))
        parts = Marks.of(read_marks(handles)).parts
        first = Marks.of(tf.constant(self.first_marks(), tf.int64))
        done.append(write_marks(handles, first._replace(parts=parts).row()))
        if handles.sketch is not None:
            none = tf.zeros([self.sketch_size], tf.uint8)
            done.append(tf.raw_ops.AssignVariableOp(resource=handles.sketch, value=none))
        return written(done)

    def keep_all(self, handles: TableHandles) -> list[tf.Operation]:
        """What has to be over before all rows change; see `history.keep`."""
        return self.kept(handles, tf.range(self.used(handles)))

    # Within.

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

    def _rows_of_meta(self, keys, refs, counts, last):
        columns = [keys, refs, counts, tf.broadcast_to(last, tf.shape(keys))]
        rows = tf.stack(columns, 1)
        rows.set_shape([None, META_WIDTH])
        return rows

    def _tended(self, handles, marks, pushed, now):
        """Does a share of what is done little by little; returns the marks."""
        if self.settings.expire_after is not None:
            marks = Marks.of(granting.swept(self, handles, marks, now))
        return index.renewed(handles, marks, pushed, lambda slots: self.notes(handles, slots))
