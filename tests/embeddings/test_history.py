"""What a table was at a cut, whatever is changed while the cut is written."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfps.embeddings import history
from tfps.embeddings.handles import COUNT, KEY
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.history import History
from tfps.embeddings.initial_rows import InitialRows
from tfps.embeddings.keys import REMOVED
from tfps.embeddings.part import TablePart
from tfps.embeddings.settings import TableSettings
from tfps.store.resources import read_rows, write_rows

ROWS, WIDTH = 12, 2


KEYS = tf.TensorSpec([None], tf.int64)
NUMBER = tf.TensorSpec([], tf.int64)


class Numbered:
    """A table of a column of rows and a column of numbers; its state is both, by row number."""

    dtypes = tf.float32, tf.int64

    def __init__(self):
        self._columns = [
            tf.Variable(tf.zeros([ROWS, WIDTH])),
            tf.Variable(tf.zeros([ROWS], tf.int64)),
        ]
        self._history = History([ROWS], self.dtypes)
        self.handles = [self._history.handles, [c.handle for c in self._columns]]

    @staticmethod
    def history(handles):
        return handles[0]

    @classmethod
    def form(cls, handles):
        def contents(rows):
            pairs = zip(handles[1], cls.dtypes, strict=True)
            return [read_rows(handle, dtype, rows) for handle, dtype in pairs]

        return history.Form([ROWS], cls.dtypes, contents)

    def limit(self):
        return ROWS

    def update(self, ids):
        functions(self).update(self.handles, tf.constant(sorted(ids), tf.int64), np.int64(0))

    @classmethod
    def updated(cls, handles, rows, now):
        del now
        with tf.control_dependencies(history.keep(handles[0], cls.form(handles), rows)):
            rows = tf.identity(rows)
        for handle, dtype in zip(handles[1], cls.dtypes, strict=True):
            now = read_rows(handle, dtype, rows)
            write_rows(handle, rows, now + tf.ones_like(now))

    def state(self):
        columns = [c.numpy() for c in self._columns]
        return self.read(dict(enumerate(zip(*columns, strict=True))))

    def read(self, found):
        """State by row number of {row number: contents}."""
        return {i: (*a, b) for i, (a, b) in found.items()}


class Keyed:
    """A table that grows, is full at ten keys and forgets some; its state is by key."""

    table = HashTable(
        TableSettings(
            WIDTH, InitialRows("constant", 0.0, 0.0, 0), 4, 10, evict="lru", expire_after=6
        ),
        1,
        [np.zeros([WIDTH], np.float32)],
    )

    def __init__(self):
        self._part = TablePart(self.table, noted_from=0)
        self.handles = self._part.handles
        self._now = 0

    @staticmethod
    def history(handles):
        return handles.history

    @classmethod
    def form(cls, handles):
        return cls.table.form(handles)

    def limit(self):
        return self._part.marks["used"]

    def update(self, ids):
        self._now += 1
        keys = tf.constant(sorted(ids), tf.int64) + 1
        functions(self).update(self.handles, keys, np.int64(self._now))

    @classmethod
    def updated(cls, handles, keys, now):
        where, _ = cls.table.insert(handles, keys, now)
        written = []
        for state in (None, 0):
            rows = cls.table.gather(handles, where, state) + 1
            written += cls.table.update(handles, where, rows, now, state)
        with tf.control_dependencies(written):
            cls.table.commit(handles, where, now)

    def state(self):
        every = tf.range(self.limit(), dtype=tf.int64)
        columns = [c.numpy() for c in self.table.contents(self.handles, every)]
        return self.read(dict(enumerate(zip(*columns, strict=True))))

    def read(self, found):
        """State by key of {row number: contents}."""
        return {
            int(meta[KEY]): (*row, *slot, meta[COUNT])
            for meta, row, slot in found.values()
            if meta[KEY] != REMOVED
        }


class Functions:
    """The functions of one kind of table, traced once."""

    def __init__(self, kind):
        def piece(handles, number, begin, end, since, saved):
            own, form = kind.history(handles), kind.form(handles)
            found, _ = history.read(own, form, number, (begin, end), since, saved)
            return history.settled(found, end, since)

        def begin(handles, number, limit):
            return history.begun(kind.history(handles), kind.form(handles), number, limit)

        def end(handles, number):
            return history.ended(kind.history(handles), kind.form(handles), number)

        self._traced = {}
        given = kind().handles
        none = tf.zeros([0], tf.int64)
        contents = kind.form(given).contents(none)
        saved = [none, tf.zeros([0], tf.int32), *contents]
        specs = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in saved]
        forms = {
            kind.updated: [KEYS, NUMBER],
            piece: [NUMBER] * 4 + [specs],
            begin: [NUMBER] * 2,
            end: [NUMBER],
        }
        self.none = saved
        self.update, self.piece, self.begin, self.end = [
            tf.function(one, autograph=False).get_concrete_function(given, *form)
            for one, form in forms.items()
        ]


@functools.cache
def functions_of(kind):
    return Functions(kind)


def functions(table):
    return functions_of(type(table))


TABLES = {"numbered": Numbered, "keyed": Keyed}
ids_ = st.sets(st.integers(0, ROWS - 1), min_size=1, max_size=5)
updates_ = st.lists(ids_, max_size=3)


class Snapshots:
    """Reads cuts of a table, as a chain of what had changed since the cut before."""

    def __init__(self, table):
        self._table, self._cut, self._found = table, 0, {}

    def take(self, between, since, begins=True):
        """Reads a cut in pieces of 3 rows, with updates before each; returns (state, rows read)."""
        table, call = self._table, functions(self._table)
        self._cut, limit = self._cut + 1, table.limit()
        if begins:
            call.begin(table.handles, np.int64(self._cut), np.int64(limit))
        saved, count = call.none, 0
        for k, begin in enumerate(range(0, limit, 3)):
            for ids in between[k : k + 1]:
                table.update(ids)
            numbers = map(np.int64, (self._cut, begin, min(limit, begin + 3), since))
            rows, contents, saved = call.piece(table.handles, *numbers, saved)
            columns = [c.numpy() for c in contents]
            self._found |= dict(zip(rows.numpy(), zip(*columns, strict=True), strict=True))
            count += len(rows)
        call.end(table.handles, np.int64(self._cut))
        return table.read(self._found), count


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    cuts=st.lists(
        st.tuples(updates_, st.lists(ids_, min_size=4, max_size=4)), min_size=2, max_size=4
    )
)
def test_a_cut_has_one_moment_and_the_next_one_only_what_has_changed(make, cuts):
    table = make()
    snapshots = Snapshots(table)
    for number, (before, between) in enumerate(cuts):
        for ids in before:
            table.update(ids)
        expected = table.state()
        found, _ = snapshots.take(between, since=number)
        assert found == expected


def test_rows_that_have_not_changed_are_not_read_again():
    table = Numbered()
    snapshots = Snapshots(table)
    assert snapshots.take([], since=0)[1] == ROWS
    table.update({1, 5})
    # What is changed while a cut is written belongs to the next one.
    assert snapshots.take([{7}, {5, 8}], since=1)[1] == 2
    assert snapshots.take([], since=2)[1] == 3
    assert snapshots.take([], since=3)[1] == 0


def test_a_late_reader_of_an_earlier_cut_is_refused():
    table = Numbered()
    snapshots = Snapshots(table)
    snapshots.take([], since=0)
    snapshots.take([], since=1)
    snapshots._cut = 0
    with pytest.raises(tf.errors.InvalidArgumentError, match="a later snapshot has begun"):
        snapshots.take([], since=0, begins=False)


def test_nothing_is_kept_when_no_cut_is_open():
    table = Numbered()
    snapshots = Snapshots(table)
    for number in range(3):
        table.update(set(range(ROWS)))
        assert int(tf.raw_ops.QueueSizeV2(handle=table.handles[0].saved)) == 0
        snapshots.take([{11}, {10, 11}], since=number)
        assert int(tf.raw_ops.QueueSizeV2(handle=table.handles[0].saved)) == 0
