"""The laws of every `RowStorage`, on variables of this process.

Beside the package's own members, a storage of rows under arbitrary keys goes through the same
laws: the protocol has room for tables that grow.
"""

import itertools
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfps.compression import Identity
from tfps.store.dense_rows import DenseRows, RowRange
from tfps.store.handles import RoundHandles, ServerHandles, StoreHandles
from tfps.store.row_storage import Part
from tfps.store.tables import Ids, Table

WIDTH = 2
CAPACITY = 40


class KeyedRows:
    """Rows under any ids but 0 and 1. An index per part says which row is an id's; row 0 is new.

    Attributes:
      parts: see `RowStorage`.
    """

    def __init__(self, parts):
        self.parts = [Part(i, 0) for i in range(parts)]
        self._indexes = [
            tf.lookup.experimental.DenseHashTable(
                tf.int64, tf.int64, default_value=0, empty_key=0, deleted_key=1
            )
            for _ in range(parts)
        ]

    def exist(self, ids):
        return tf.reduce_all(ids > 1)

    def route(self, ids):
        return tf.cast(ids % len(self.parts), tf.int32)

    def locate(self, handles, part, ids, insert):
        index = self._indexes[part]
        found = index.lookup(ids)
        if insert:
            new = tf.equal(found, 0)
            found = tf.where(new, index.size() + tf.cumsum(tf.cast(new, tf.int64)), found)
            index.insert(ids, found)
        return found

    def gather(self, handle, dtype, where):
        return tf.raw_ops.ResourceGather(resource=handle, indices=where, dtype=dtype)

    def update(self, handle, where, rows):
        return tf.raw_ops.ResourceScatterUpdate(resource=handle, indices=where, updates=rows)

    def export(self, part):
        keys, rows = self._indexes[part].export()
        keys, rows = keys.numpy()[rows.numpy() > 0], rows.numpy()[rows.numpy() > 0]
        return np.concatenate([[0], keys[np.argsort(rows)]])


def dense(parts):
    ends = np.linspace(0, CAPACITY, parts + 1).astype(int)
    ranges = [RowRange(Part(i, 0), b, e) for i, (b, e) in enumerate(itertools.pairwise(ends))]
    return DenseRows(ranges[::-1])


MEMBERS = {"dense": dense, "keyed": KeyedRows}
members = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)
lookups_ = st.lists(st.lists(st.integers(2, 20), max_size=5), min_size=1, max_size=3)
ids_ = st.lists(st.integers(2, CAPACITY - 1), unique=True, min_size=1, max_size=12)
quick = hypothesis.settings(deadline=None, max_examples=25)


def variables(storage):
    """A variable of each part, with room for all rows."""
    return [tf.Variable(tf.fill([CAPACITY, WIDTH], 0.5)) for _ in storage.parts]


def handles(stored):
    values = {i: v.handle for i, v in enumerate(stored)}
    return ServerHandles(StoreHandles(values, {}, {}, [], [], None), {}, RoundHandles({}, {}, []))


@members
@pytest.mark.parametrize("parts", [1, 3])
@hypothesis.given(ids=ids_, others=ids_)
@quick
def test_laws(make, parts, ids, others):
    storage = make(parts)
    stored = variables(storage)
    assert bool(storage.exist(tf.constant(ids, tf.int64)))
    assert not bool(storage.exist(tf.constant([-5], tf.int64)))
    part = storage.route(tf.constant(ids, tf.int64)).numpy()
    assert ((part >= 0) & (part < parts)).all()
    written = {}
    for k, variable in enumerate(stored):
        mine = tf.constant([i for i, p in zip(ids, part, strict=True) if p == k], tf.int64)
        # An id that was never pushed is found, and has the values that all rows begin with.
        where = storage.locate(None, k, mine, insert=False)
        rows = storage.gather(variable.handle, tf.float32, where)
        np.testing.assert_array_equal(rows, np.full([len(mine), WIDTH], 0.5))
        # An id that is inserted has a row of its own, and keeps it.
        where = storage.locate(None, k, mine, insert=True)
        assert len(np.unique(where)) == len(mine)
        np.testing.assert_array_equal(storage.locate(None, k, mine, insert=False), where)
        new = tf.random.stateless_normal([len(mine), WIDTH], [k, 0])
        storage.update(variable.handle, where, new)
        written.update(zip(mine.numpy().tolist(), new.numpy(), strict=True))
        np.testing.assert_array_equal(storage.export(k)[where.numpy()], mine)
    # Rows of other ids are as before, and written ones are found again after others were inserted.
    for i in [*others, *ids]:
        one = tf.constant([i], tf.int64)
        k = int(storage.route(one)[0])
        where = storage.locate(None, k, one, insert=i in others)
        (row,) = storage.gather(stored[k].handle, tf.float32, where).numpy()
        np.testing.assert_array_equal(row, written.get(i, np.full([WIDTH], 0.5)))


@members
@pytest.mark.parametrize("parts", [1, 3])
@hypothesis.given(lookups=lookups_)
@quick
def test_a_table_sends_each_row_once_and_back(make, parts, lookups):
    """What a worker pulls are the rows of its ids; what it pushes arrives under these ids."""
    hypothesis.assume(any(lookups))
    storage = make(parts)
    stored = variables(storage)
    table = Table(storage, (WIDTH,), "float32", Identity(), Identity())
    given = handles(stored)
    ids = Ids.of([tf.constant(one, tf.int64) for one in lookups])
    assert bool(table.has(ids))
    gradient = tf.stack([tf.cast(ids.unique, tf.float32)] * WIDTH, 1)
    seed = tf.zeros([2], tf.int32)
    for bucket, sent in table.encode(gradient, ids, seed).items():
        where, rows = table.decode(given, bucket, sent)
        storage.update(stored[bucket].handle, where, rows)
    with mock.patch("tfps.store.tables.ps_device", lambda ps: ""):  # This process.
        found = table.pull(given, ids, seed)
    for positions, one in zip(found.rows.positions, lookups, strict=True):
        rows = tf.gather(found.rows.values, positions)
        np.testing.assert_array_equal(rows, np.stack([np.array(one, np.float32)] * WIDTH, 1))
    assert len(found.rows.values) == sum(map(len, lookups))
    assert float(table.bytes_down(ids)) == len(ids.unique) * WIDTH * 4
    assert float(table.bytes_up(ids)) == len(ids.unique) * (WIDTH * 4 + 2 * 8)
