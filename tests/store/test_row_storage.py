"""The laws of every `RowStorage`, on variables of this process.

A table whose ids are its row numbers, and one that grows, behave alike.
"""

import itertools
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfps.compression import Identity
from tfps.embeddings.initial_rows import InitialRows
from tfps.embeddings.settings import TableSettings
from tfps.store import row_messages
from tfps.store.dense_rows import DenseRows, RowRange
from tfps.store.handles import RoundHandles, ServerHandles, StoreHandles
from tfps.store.hash_rows import HashRows
from tfps.store.row_storage import Part
from tfps.store.tables import Ids, Table

WIDTH = 2
CAPACITY = 40


def hashed(parts):
    settings = TableSettings(WIDTH, InitialRows("constant", 0.5, 0.5, 0), CAPACITY)
    return HashRows(settings, [Part(i, 0) for i in range(parts)])


def dense(parts):
    ends = np.linspace(0, CAPACITY, parts + 1).astype(int)
    ranges = [RowRange(Part(i, 0), b, e) for i, (b, e) in enumerate(itertools.pairwise(ends))]
    return DenseRows(ranges[::-1])


MEMBERS = {"dense": dense, "hashed": hashed}
members = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)
lookups_ = st.lists(st.lists(st.integers(2, 20), max_size=5), min_size=1, max_size=3)
ids_ = st.lists(st.integers(2, CAPACITY - 1), unique=True, min_size=1, max_size=12)
quick = hypothesis.settings(deadline=None, max_examples=25)


class Stored:
    """What the parts of a storage consist of, in this process, and their handles."""

    def __init__(self, storage):
        self._version, self._parts, values = tf.Variable(0, dtype=tf.int64), [], {}
        tables = {}
        for i, _ in enumerate(storage.parts):
            if isinstance(storage, HashRows):
                with mock.patch("tfps.store.hash_rows.ps_device", lambda ps: ""):
                    self._parts.append(storage.make(i, []))
                tables[i] = self._parts[-1].handles
            else:
                self._parts.append(tf.Variable(tf.fill([CAPACITY, WIDTH], 0.5)))
                values[i] = self._parts[-1].handle
        store = StoreHandles(values, {}, {}, tables, [], [self._version.handle], None)
        self.handles = ServerHandles(store, {}, RoundHandles({}, {}, {}, []))

    def write(self, storage, k, ids, rows):
        """One update; returns the places that the ids have."""
        where, taken = storage.insert(self.handles, k, ids)
        assert taken is None or taken.numpy().tolist() == list(range(len(ids)))
        before = storage.gather(self.handles, k, where, tf.float32)
        storage.update(self.handles, k, where, rows)
        storage.commit(self.handles, k, where)
        self._version.assign_add(1)
        return before


@members
@pytest.mark.parametrize("parts", [1, 3])
@hypothesis.given(ids=ids_, others=ids_)
@quick
def test_laws(make, parts, ids, others):
    storage = make(parts)
    stored = Stored(storage)
    given = stored.handles
    assert bool(storage.exist(tf.constant(ids, tf.int64)))
    part = storage.route(tf.constant(ids, tf.int64)).numpy()
    assert ((part >= 0) & (part < parts)).all()
    written = {}
    for k in range(parts):
        mine = tf.constant([i for i, p in zip(ids, part, strict=True) if p == k], tf.int64)
        # An id that was never pushed is found, and has the values that all rows begin with.
        initial = np.full([len(mine), WIDTH], 0.5)
        np.testing.assert_array_equal(storage.read(given, k, mine, tf.float32), initial)
        new = tf.random.stateless_normal([len(mine), WIDTH], [k, 0])
        np.testing.assert_array_equal(stored.write(storage, k, mine, new), initial)
        # An id that was pushed has a row of its own, and keeps it.
        np.testing.assert_array_equal(storage.read(given, k, mine, tf.float32), new)
        np.testing.assert_array_equal(stored.write(storage, k, mine, new), new)
        written.update(zip(mine.numpy().tolist(), new.numpy(), strict=True))
    # Rows of other ids are as before, and written ones are found again after others were inserted.
    for i in [*others, *ids]:
        one = tf.constant([i], tf.int64)
        k = int(storage.route(one)[0])
        (row,) = storage.read(given, k, one, tf.float32).numpy()
        np.testing.assert_array_equal(row, written.get(i, np.full([WIDTH], 0.5)))
        if i in others:
            stored.write(storage, k, one, row[None])


@members
@pytest.mark.parametrize("parts", [1, 3])
@hypothesis.given(lookups=lookups_)
@quick
def test_a_table_sends_each_row_once_and_back(make, parts, lookups):
    """What a worker pulls are the rows of its ids; what it pushes arrives under these ids."""
    hypothesis.assume(any(lookups))
    storage = make(parts)
    stored = Stored(storage)
    table = Table(storage, (WIDTH,), "float32", Identity(), Identity())
    given = stored.handles
    ids = Ids.of([tf.constant(one, tf.int64) for one in lookups])
    assert bool(table.has(ids))
    gradient = tf.stack([tf.cast(ids.unique, tf.float32)] * WIDTH, 1)
    seed = tf.zeros([2], tf.int32)
    for bucket, sent in table.encode(gradient, ids, seed).items():
        stored.write(storage, table.part(bucket), sent.ids, table.decode(sent))
    with mock.patch("tfps.store.row_messages.ps_device", lambda ps: ""):  # This process.
        found = row_messages.pull({0: table}, {0: ids}, given, seed)[0]
    for positions, one in zip(found.rows.positions, lookups, strict=True):
        rows = tf.gather(found.rows.values, positions)
        np.testing.assert_array_equal(rows, np.stack([np.array(one, np.float32)] * WIDTH, 1))
    assert len(found.rows.values) == sum(map(len, lookups))
    assert float(table.bytes_down(ids)) == len(ids.unique) * WIDTH * 4
    assert float(table.bytes_up(ids)) == len(ids.unique) * (WIDTH * 4 + 2 * 8)
