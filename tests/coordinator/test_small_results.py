"""Results of few bytes, which lie in buffers on the workers."""

import concurrent.futures
import gc
import itertools
import threading

import numpy as np
import pytest
import tensorflow as tf

from tests.coordinator.conftest import BOTH, UNRAISABLE
from tfps import _tf, _tf_functions
from tfps.cluster.byte_row import ByteRow
from tfps.coordinator import result_buffer

pytestmark = UNRAISABLE


@pytest.fixture
def several():
    @tf.function
    def f(i):
        return {"i": i, "more": (tf.cast(i, tf.float32) / 2, [i % 2 == 0]), "none": None}

    return f


def check(fetched, i):
    assert fetched == {"i": i, "more": (i / 2, [i % 2 == 0]), "none": None}


def test_more_results_than_rows(make, several):
    """Some are dropped at once, some looked at early, the others late."""
    coordinator = make()
    kept = {}
    for i in range(4 * result_buffer._ROWS):
        value = coordinator.schedule(several, args=(tf.constant(i),))
        if i % 3:
            kept[i] = value
        del value
        if i % 48 == 1:
            check(kept.pop(i).fetch(), i)
    for i, fetched in zip(kept, coordinator.fetch(list(kept.values())), strict=True):
        check(fetched, i)
    tensor = coordinator.schedule(several, args=(tf.constant(7),)).get()["more"][0]
    assert tensor.dtype == tf.float32
    assert _tf.chief_device() in tensor.device


def test_they_are_fetched_by_many_threads_while_others_are_computed(make, several):
    coordinator = make()
    coordinator.__init__(coordinator.strategy, in_flight=2)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        fetched = []
        for i in range(300):
            value = coordinator.schedule(several, args=(tf.constant(i),))
            # Two threads for the same one.
            fetched += [(i, pool.submit(value.fetch)) for _ in range(2)]
        for i, future in fetched:
            check(future.result(timeout=60), i)


def test_a_row_is_given_back_once(make, monkeypatch):
    """While one thread drops a result, another copies the buffer, and a lane writes to it."""
    coordinator = make(workers=1)
    triple = tf.function(lambda x: 3 * x)

    def scheduled(i):
        value = coordinator.schedule(triple, args=(tf.constant(i),))
        value._wait()  # `join` would bring it.
        return value

    dropped: list = []
    dropper = threading.Thread(target=dropped.clear)
    entered, go = threading.Event(), threading.Event()
    release = result_buffer._Buffer.release

    def slow(*args):
        if threading.current_thread() is dropper:
            entered.set()
            assert go.wait(10)
        release(*args)

    monkeypatch.setattr(result_buffer._Buffer, "release", slow)
    dropped.append(scheduled(1))
    held = scheduled(2)
    dropper.start()
    assert entered.wait(10)
    assert held.fetch() == 6
    before = [scheduled(i) for i in (10, 11)]
    go.set()
    dropper.join(10)
    after = [scheduled(i) for i in (12, 13)]
    assert coordinator.fetch(before + after) == [30, 33, 36, 39]


@BOTH
def test_seeded_numbers_go_on_whoever_keeps_them(make, kind):
    coordinator = make(kind, workers=1)

    def series(keep, arguments=tf.constant):
        draw = tf.function(lambda x: x + tf.random.uniform([], seed=5))
        kept = []
        for i in range(8):
            value = coordinator.schedule(draw, args=(arguments(0.0),))
            if keep(i):
                kept.append(value)
            del value
            coordinator.join()
        return coordinator.fetch(kept)

    every = series(lambda i: True)
    assert len(set(every)) == 8
    assert series(lambda i: i % 3 == 2) == [every[2], every[5]]
    kinds = itertools.cycle([tf.constant, np.float32, lambda x: np.array(x, np.float32)])
    assert series(lambda i: True, lambda x: next(kinds)(x)) == every


def test_they_leave_no_tensors_on_the_worker(make, several, monkeypatch):
    coordinator = make(workers=1)
    returned = []
    flat = _tf_functions.FlatFunction
    call = flat.__call__
    monkeypatch.setattr(
        flat, "__call__", lambda *args: returned.append(call(*args)) or returned[-1]
    )
    large = tf.function(lambda i: tf.fill([65], i))
    for function in (several, large):
        coordinator.schedule(function, args=(tf.constant(1),))
    coordinator.join()
    assert [len(outputs) for outputs in returned] == [0, 1]


def test_a_call_that_failed_may_write_late_without_harm(make):
    """It may go on, on its worker, while others' results are where it would have been."""
    make(workers=1)
    here = result_buffer.Results("/job:worker/replica:0/task:0/device:CPU:0")
    packing = ByteRow([tf.TensorSpec([], tf.int32)])
    write = tf.function(lambda x, *place: result_buffer.store(packing, [x], *place))
    failed = here.row(packing)
    late = failed.place()
    here.abandon(packing)
    del failed
    rows = [here.row(packing) for _ in range(result_buffer._ROWS)]
    for i, row in enumerate(rows):
        write(tf.constant(i), *row.place())
        row.written = True
    write(tf.constant(-1), *late)
    assert [int(row.tensors()[0]) for row in rows] == list(range(result_buffer._ROWS))


def test_an_error_leaves_results_as_they_are(make, several, positive):
    coordinator = make(workers=1)
    for _ in range(3):
        before = [coordinator.schedule(several, args=(tf.constant(i),)) for i in range(5)]
        coordinator.join()
        coordinator.schedule(positive, args=(tf.constant(-1),))
        with pytest.raises(tf.errors.InvalidArgumentError):
            coordinator.join()
        after = [coordinator.schedule(several, args=(tf.constant(i),)) for i in range(5)]
        for i, value in enumerate(before + after):
            check(value.fetch(), i % 5)


def test_they_outlive_their_coordinator(make, several):
    coordinator = make()
    values = [coordinator.schedule(several, args=(tf.constant(i),)) for i in range(3)]
    coordinator.join()
    del coordinator
    gc.collect()
    for i, value in enumerate(values):
        check(value.fetch(), i)


def test_they_may_be_asked_for_while_a_graph_is_traced(make, several):
    coordinator = make()  # What it has scheduled is cancelled when it is collected.
    value = coordinator.schedule(several, args=(tf.constant(6),))

    @tf.function
    def half():
        return value.get()["more"][0] + 0.0

    assert half() == 3
    check(value.fetch(), 6)


@pytest.mark.parametrize("size", [1, 1000])
def test_compiled_functions(make, size):
    @tf.function(jit_compile=True)
    def twice(x):
        return 2 * x

    coordinator = make()
    value = coordinator.schedule(twice, args=(tf.ones([size]),))
    np.testing.assert_array_equal(value.fetch(), 2 * np.ones([size]))
