"""One part of a table that grows, against a dictionary in Python."""

import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps.embeddings import exports
from tfps.embeddings.handles import KEY
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.initial_rows import InitialRows
from tfps.embeddings.keys import EMPTY, REMOVED, ids_of, key_of_id, keys_of
from tfps.embeddings.part import TablePart
from tfps.embeddings.settings import TableSettings

WIDTH = 4
INITIAL = InitialRows("uniform", -0.05, 0.05, 3)


class Rig:
    """A part, and what its rows should be."""

    def __init__(self, traced=False, **settings):
        self.settings = TableSettings(WIDTH, INITIAL, **{"expected": 100, **settings}).checked()
        self.table = HashTable(self.settings, 1, [np.full([WIDTH], 0.1, np.float32), None])
        self.part = TablePart(self.table)
        self.now = 0
        self.rows = {}  # key -> (row, slot, last), as it is read
        self._push, self._read = self._pushed, self.table.read
        if traced:  # Which takes seconds.
            self._push = tf.function(self._push, autograph=False, reduce_retracing=True)
            self._read = tf.function(self._read, autograph=False, reduce_retracing=True)

    def _pushed(self, handles, keys, change, now):
        where, taken = self.table.insert(handles, keys, now)
        row, slot = self.table.gather(handles, where), self.table.gather(handles, where, 0)
        change = tf.gather(change, taken)
        done = self.table.update(handles, where, row + change, now)
        done += self.table.update(handles, where, slot + change**2, now, 0)
        done = [one for one in done if one is not None]
        with (
            tf.control_dependencies(done),
            tf.control_dependencies(self.table.commit(handles, where, now)),
        ):
            return tf.identity(taken), tf.identity(slot)

    def push(self, ids, change=None):
        """One update; returns which of the ids have a row now."""
        self.now += 1
        self.look()
        keys = keys_of(tf.constant(ids, tf.int64))
        change = np.ones([len(ids), WIDTH], np.float32) if change is None else change
        now = tf.constant(self.now, tf.int64)
        taken, slots = self._push(self.part.handles, keys, tf.constant(change), now)
        for j, slot in zip(taken.numpy(), slots.numpy(), strict=True):
            key = int(keys[j])
            row, before = self.rows.get(key, (self.initial([key])[0], np.full(WIDTH, 0.1)))
            np.testing.assert_allclose(slot, before, atol=1e-4)  # It was reset with its row.
            self.rows[key] = row + change[j], before + change[j] ** 2
        return np.asarray(ids)[taken.numpy()]

    def initial(self, keys):
        return INITIAL.rows(tf.constant(keys, tf.int64), WIDTH).numpy()

    def look(self):
        """Every key has its own row, or its initial one if the row is gone; forgets those."""
        if not self.rows:
            return
        keys = list(self.rows)
        now = tf.constant(self.now, tf.int64)
        rows = self._read(self.part.handles, tf.constant(keys, tf.int64), now).numpy()
        for key, row, initial in zip(keys, rows, self.initial(keys), strict=True):
            if not np.allclose(row, self.rows[key][0], atol=1e-4):
                np.testing.assert_array_equal(row, initial)
                del self.rows[key]

    @property
    def marks(self):
        return self.part.marks


def test_keys_are_a_bijection_of_ids():
    ids = np.concatenate([np.arange(-9, 9), [-(1 << 63) + 2, (1 << 63) - 1]]).astype(np.int64)
    keys = keys_of(tf.constant(ids)).numpy()
    np.testing.assert_array_equal(ids_of(keys), ids)
    np.testing.assert_array_equal(keys, [key_of_id(int(i)) for i in ids])
    smallest = tf.constant([-(1 << 63), -(1 << 63) + 1], tf.int64)
    assert not {EMPTY, REMOVED} & set(keys_of(smallest).numpy().tolist())
    # Multiples of a power of two spread over the low bits, by which the hash table goes.
    low = keys_of(tf.range(1000, dtype=tf.int64) * 2**40).numpy() % 1024
    assert len(np.unique(low)) > 500
    assert keys_of(tf.constant(["a", "b", "a"])).numpy()[0] != keys_of(tf.constant(["b"])).numpy()


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [("uniform", 0, 0.1 / 12**0.5), ("random_normal", 0, 0.05), ("truncated_normal", 0, 0.044),
     ("ones", 1, 0)],
)  # fmt: skip
def test_initial_rows(name, mean, deviation):
    rows = InitialRows.of(name, 1)
    keys = keys_of(tf.range(5000, dtype=tf.int64))
    drawn = rows.rows(keys, 8).numpy()
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5e-3)
    np.testing.assert_allclose(drawn.std(0), deviation, atol=2e-3)
    in_graph = tf.function(lambda k: rows.rows(k, 8), autograph=False)(keys[7:9])
    np.testing.assert_array_equal(in_graph, drawn[7:9])
    with pytest.raises(tfps.ConfigError, match=r"GlorotUniform.* RandomUniform, RandomNormal"):
        InitialRows.of("glorot_uniform", 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"expected": 40, "traced": True},
        {"capacity": 60, "evict": "lfu"},
        pytest.param({"capacity": 60, "evict": "lru"}, marks=pytest.mark.soak),
        pytest.param({"capacity": 60, "evict": "none"}, marks=pytest.mark.soak),
        {"expire_after": 6},
    ],
    ids=str,
)
def test_a_random_stream(settings):
    rig, rng = Rig(**settings), np.random.default_rng(0)
    for step in range(60):
        ids = rng.choice(200, 15, replace=False) + 6 * step
        rig.push(ids, rng.normal(size=(15, WIDTH)).astype(np.float32))
    rig.look()
    marks = rig.marks
    held = marks["used"] - marks["free"]
    meta, (rows,) = exports.export(rig.table, rig.part.handles, [None])
    assert held == len(meta) == len(set(meta.numpy()[:, KEY].tolist()))
    if "capacity" in settings:
        assert held == 60 and marks["refused" if settings["evict"] == "none" else "evicted"] > 300
    elif "expire_after" in settings:
        assert marks["expired"] > 100 and held < 250
    else:  # It grew, and lost nothing.
        assert marks["parts"] > 3 and held == len(rig.rows)
        found = dict(zip(meta.numpy()[:, KEY].tolist(), rows.numpy(), strict=True))
        for key, (row, _) in rig.rows.items():
            np.testing.assert_allclose(found[key], row, atol=1e-4)


def test_eviction_takes_those_named_least_or_longest_ago():
    for evict, gone in (("lfu", 2), ("lru", 1)):
        rig = Rig(capacity=3, evict=evict)
        for ids in ([1, 2, 3], [1, 3], [1, 3], [2]):
            rig.push(ids)
        rig.push([4])
        rig.look()
        held = {int(i) for i in ids_of(np.array(list(rig.rows)))}
        assert held == {1, 2, 3, 4} - {gone}
        # More new keys than there is room for: those of this update stay.
        assert len(rig.push([10, 11, 12, 13, 14])) == 3
        assert rig.marks["refused"] == 2


@pytest.mark.parametrize("evict", ["lfu", "lru", "none"])
def test_the_first_update_has_more_keys_than_there_is_room_for(evict):
    rig = Rig(capacity=3, evict=evict)
    assert len(rig.push([10, 11, 12, 13, 14])) == 3
    assert rig.marks["refused"] == 2
    assert rig.marks["used"] - rig.marks["free"] == 3


def test_a_row_expires_with_its_slots():
    rig = Rig(expire_after=5)
    rig.push([1, 2])
    for _ in range(5):
        rig.push([2])
    key = [key_of_id(1)]
    rig.look()
    assert len(rig.rows) == 2  # Five updates have not named it.
    rig.push([2])
    rig.look()
    assert key[0] not in rig.rows
    rig.push([1])  # `push` compares the slot with what it begins with.
    np.testing.assert_allclose(rig.rows[key[0]][0], rig.initial(key)[0] + 1, atol=1e-6)


@pytest.mark.long
def test_admission_is_never_late_and_seldom_early():
    rig, rng = Rig(expected=3000, admit_after=3), np.random.default_rng(0)
    seen, early = {}, 0
    for _ in range(60):
        ids = rng.choice(3000, 150, replace=False)
        has_row = set(rig.push(ids).tolist())
        for i in ids.tolist():
            seen[i] = seen.get(i, 0) + 1
            assert i in has_row or seen[i] < 3
            early += i in has_row and seen[i] < 3
    assert early <= 0.01 * len(seen)


@pytest.mark.long
def test_a_new_index_is_made_while_keys_come_and_go(monkeypatch):
    monkeypatch.setattr("tfps.embeddings.index._MOVED", 50)
    monkeypatch.setattr("tfps.embeddings.index._MOVED_EACH", 1)
    rig, moving = Rig(capacity=700, expected=500, evict="lru"), 0
    for step in range(80):
        rig.push(np.arange(step * 40, step * 40 + 40))
        moving += rig.marks["moved"] >= 0
    rig.look()
    marks = rig.marks
    assert moving > 5 and marks["evicted"] > 2000 and len(rig.rows) == 700
    assert marks["erased"] < marks["evicted"] and marks["buckets"] >= 1024


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.soak)])
def test_a_reader_never_sees_the_row_of_another_key(seconds):
    """Rows are full of their own id, and are taken away all the time while somebody reads."""
    zero = TableSettings(WIDTH, InitialRows("constant", 0, 0, 0), 64, 64, evict="lru")
    table = HashTable(zero, 1)
    part = TablePart(table)
    wrong, stop, reads = [], threading.Event(), []
    ids = np.arange(1, 400)
    keys = keys_of(tf.constant(ids))

    @tf.function(autograph=False)
    def read(now):
        return table.read(part.handles, keys, now)

    @tf.function(autograph=False, reduce_retracing=True)
    def push(some, values, now):
        where, taken = table.insert(part.handles, some, now)
        done = table.update(part.handles, where, tf.gather(values, taken), now)
        with tf.control_dependencies(done):
            table.commit(part.handles, where, now)

    def reader():
        while not stop.is_set():
            rows = read(tf.constant(0, tf.int64)).numpy()
            reads.append(np.count_nonzero(rows))
            if not ((rows == 0) | (rows == ids[:, None])).all():
                wrong.append(rows)

    thread = threading.Thread(target=reader)
    thread.start()
    rng = np.random.default_rng(0)
    try:
        step, end = 0, time.monotonic() + seconds
        while step < 200 or time.monotonic() < end:
            step += 1
            some = rng.choice(len(ids), 16, replace=False)
            values = np.repeat(ids[some, None], WIDTH, 1).astype(np.float32)
            push(tf.gather(keys, some), tf.constant(values), tf.constant(step, tf.int64))
    finally:
        stop.set()
        thread.join()
    assert not wrong and sum(reads) > 0
    assert part.marks["evicted"] > 1500


@pytest.mark.parametrize(("kind", "error"), [("bfloat16", 2**-7), ("int8", 1 / 127)])
def test_rows_of_fewer_bits_are_right_on_average(kind, error):
    rig = Rig(row_dtype=kind)
    rows = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    keys = keys_of(tf.constant([1, 2, 3], tf.int64))
    total = np.zeros_like(rows)
    for now in range(1, 61):
        at = tf.constant(now, tf.int64)
        where, _ = rig.table.insert(rig.part.handles, keys, at)
        rig.table.update(rig.part.handles, where, tf.constant(rows), at)
        rig.table.commit(rig.part.handles, where, at)
        read = rig.table.read(rig.part.handles, keys, at).numpy()
        assert (abs(read - rows) <= error * abs(rows).max(1, keepdims=True) + 1e-6).all()
        total += read
    scale = abs(rows).max(1, keepdims=True)
    assert (abs(total / 60 - rows) < 0.35 * error * scale).all()


def test_settings_are_checked():
    for name, value in (("expected", 0), ("capacity", 0), ("admit_after", 256), ("evict", "old")):
        with pytest.raises(tfps.ConfigError, match=rf"{name}={value!r} must be"):
            Rig(**{name: value})
