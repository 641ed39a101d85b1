"""Results that are on workers when these are lost, without processes to kill.

Workers are lost and taken in again on paper.
"""

import contextlib
import gc
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.coordinator.conftest import BOTH, UNRAISABLE, broken, eventually
from tfps.cluster.members import Task
from tfps.coordinator import faults, held

pytestmark = [UNRAISABLE, pytest.mark.timeout(120)]
W0, W1 = Task("worker", 0), Task("worker", 1)
SIZES = pytest.mark.parametrize("size", [1, 500, 5000])  # A row, a small tensor, a large one.


@pytest.fixture
def counted():
    """`counted(size)`: a function that counts its runs in `counted.runs`, and fills a vector."""

    class Counted:
        def __init__(self):
            self.runs = []

        def __call__(self, size=1):
            def run():
                self.runs.append(1)
                return np.int32(len(self.runs))

            @tf.function
            def f():
                n = tf.ensure_shape(tf.numpy_function(run, [], tf.int32), [])
                return tf.fill([size], n)

            return f

    return Counted()


@pytest.fixture
def copies(monkeypatch):
    """The sizes of the groups in which results were copied to the chief."""
    made, copy = [], held._copy

    def noted(group):
        made.append(len(group))
        return copy(group)

    monkeypatch.setattr(held, "_copy", noted)
    return made


def lose(coordinator, *tasks):
    for task in tasks:
        coordinator._queue._members.lose(task, "is gone")


def take_in(coordinator, *tasks):
    for task in tasks:
        coordinator._queue._members.admit(task, None)
    coordinator._queue._wake()


@SIZES
@pytest.mark.parametrize("wait", ["join", "done"])
@pytest.mark.usefixtures("by_hand")
def test_what_was_waited_for_needs_no_worker(make, counted, size, wait):
    coordinator = make()
    function = counted(size)
    values = [coordinator.schedule(function) for _ in range(5)]
    if wait == "join":
        coordinator.join()
    else:
        eventually(coordinator.done)
    lose(coordinator, W0, W1)
    assert sorted(value[0] for value in coordinator.fetch(values)) == [1, 2, 3, 4, 5]
    assert len(counted.runs) == 5
    take_in(coordinator, W0, W1)


@SIZES
@pytest.mark.parametrize("wait", ["join", "get", "fetch"])
@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.usefixtures("by_hand")
def test_what_is_lost_before_is_computed_again(make, counted, size, wait, returns):
    """By another worker, or by the worker's next life, which has nothing of the one before."""
    coordinator = make(workers=1 if returns else 2)
    lost = (W0,) if returns else (W0, W1)
    function = counted(size)
    values = [coordinator.schedule(function) for _ in range(3)]
    for value in values:
        value._wait()
    of_w0 = [value for value in values if value._source.worker == 0]
    lose(coordinator, *lost[:1])
    if returns:
        take_in(coordinator, W0)
    if wait == "join":
        coordinator.join()
        assert coordinator.done()
    got = coordinator.fetch(values) if wait == "fetch" else [value.get() for value in values]
    assert len(counted.runs) == 3 + len(of_w0)
    assert all(len(x) == size and x[0] <= len(counted.runs) for x in got)
    assert len({int(x[0]) for x in got}) == 3
    coordinator.join()
    if not returns:
        take_in(coordinator, W0)


@SIZES
def test_a_copy_that_fails_once_is_made_again(make, counted, size, monkeypatch):
    """The function is not: it may have updated variables."""
    coordinator = make()
    copy, failed = held._copy, []

    def fail_once(group):
        if not failed:
            failed.append(1)
            raise broken()
        return copy(group)

    values = [coordinator.schedule(counted(size)) for _ in range(3)]
    monkeypatch.setattr(held, "_copy", fail_once)
    coordinator.join()
    assert failed
    assert len(coordinator.fetch(values)) == len(counted.runs) == 3


def test_a_result_that_cannot_be_copied_is_an_error(make, counted, monkeypatch, double):
    coordinator = make()

    def fail(group):
        raise tf.errors.InvalidArgumentError(None, None, "no such copy")

    value = coordinator.schedule(counted())
    value._wait()
    monkeypatch.setattr(held, "_copy", fail)
    with pytest.raises(tf.errors.InvalidArgumentError, match="no such copy"):
        coordinator.join()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"worker \d.*no such copy"):
        value.get()
    monkeypatch.undo()
    coordinator.join()
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    assert len(counted.runs) == 1


@pytest.mark.usefixtures("by_hand")
def test_a_function_whose_result_is_always_lost_is_given_up(make, counted, monkeypatch):
    monkeypatch.setattr(faults, "MOST_LOSSES", 3)
    coordinator = make(workers=1)
    value = coordinator.schedule(counted())
    for _ in range(4):
        eventually(lambda: value._ready)
        lose(coordinator, W0)
        take_in(coordinator, W0)
        with contextlib.suppress(tfps.TaskLost):
            coordinator._queue.bring([value])
    with pytest.raises(tfps.TaskLost, match=r"lost its worker \d times, last worker 0 \("):
        value.get()
    assert len(counted.runs) == 4
    with pytest.raises(tfps.TaskLost, match="lost its worker"):
        coordinator.join()


@pytest.mark.usefixtures("by_hand")
def test_after_an_error_too(make, counted, positive):
    """What ran before it is here, though `join` raises; what was lost is another round's matter."""
    coordinator = make()
    here, lost = (coordinator.schedule(counted()) for _ in range(2))
    for value in (here, lost):
        value._wait()
    coordinator.schedule(positive, args=(tf.constant(-1),))
    eventually(lambda: coordinator._queue.error is not None)
    life = lost._source
    lost._source = life._replace(life=life.life - 1)
    with pytest.raises(tfps.TaskLost, match="is not computed again, because another function"):
        lost.get()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        coordinator.join()
    lose(coordinator, W0)
    here.get()
    assert len(counted.runs) == 2
    assert lost.get()[0] == 3
    coordinator.join()
    take_in(coordinator, W0)


def test_what_nobody_holds_is_not_brought(make, double, copies):
    coordinator = make()
    for i in range(20):
        coordinator.schedule(double, args=(tf.zeros([500]) + i,))
    dropped = coordinator.schedule(double, args=(tf.ones([500]),))
    dropped._wait()
    del dropped
    nothing = [coordinator.schedule(tf.function(lambda: None)) for _ in range(3)]
    made = coordinator._create_per_worker_resources(tf.function(lambda: tf.ones([500])))
    coordinator.join()
    assert not copies
    assert coordinator.fetch(nothing) == [None] * 3
    assert made._values[0].get().shape == [500]


def test_small_results_are_brought_together(make, double, copies):
    coordinator = make(workers=1)
    values = [coordinator.schedule(double, args=(tf.fill([500], i),)) for i in range(300)]
    coordinator.join()
    assert sorted(copies) == [300 - 256, 128, 128]  # The rest, and while it ran.
    assert [x[0] for x in coordinator.fetch(values)] == [2 * i for i in range(300)]
    assert len(copies) == 3


def test_nothing_is_kept_of_what_was_fetched(make, double, monkeypatch):
    monkeypatch.setattr(held, "_NOTED", 20)
    coordinator = make()
    argument = tf.ones([500])
    known = weakref.ref(argument)
    value = coordinator.schedule(double, args=(argument,))
    value._wait()
    del argument
    coordinator.join()
    gc.collect()
    assert known() is None
    noted = coordinator._queue._held
    noted._most = held._NOTED
    for i in range(3 * held._NOTED):
        assert coordinator.schedule(double, args=(tf.constant(i),)).get() == 2 * i
    assert len(noted._noted) <= held._NOTED + 1
    assert value.get().shape == [500]


@BOTH
def test_threads_that_wait_at_the_same_time(make, kind, counted):
    """Nobody is told that all is done before all is here."""
    coordinator = make(kind)
    function = counted(500)
    values = [coordinator.schedule(function) for _ in range(100)]
    threads = [threading.Thread(target=coordinator.join) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(coordinator.done)
    if kind == "tfps":
        assert all(value._source is None for value in values)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(x[0] for x in coordinator.fetch(values)) == list(range(1, 101))


@pytest.mark.usefixtures("by_hand")
def test_a_lane_does_not_wait_for_what_its_lost_worker_was_to_make(connect, gate):
    """One lane makes the value, another one of the worker waits for it, and the worker is lost."""
    coordinator = tfps.ClusterCoordinator(connect(workers=2), in_flight=2)
    failing = [True]

    def wait(worker):
        if worker == 1 and failing:
            gate.wait()
            failing.clear()
            raise broken()
        return np.bool_(True)

    @tf.function
    def make_value():
        index = tf.distribute.coordinator.experimental_get_current_worker_index()
        return tf.ensure_shape(tf.numpy_function(wait, [index], tf.bool), [])

    value = coordinator._create_per_worker_resources(make_value)
    assert gate.entered.acquire(timeout=10)
    use = tf.function(lambda x: x)
    for _ in range(50):
        coordinator.schedule(use, args=(value,))
    eventually(lambda: value._values[1]._event is not None)  # A lane waits.
    lose(coordinator, W1)
    gate.open()
    joined = threading.Thread(target=coordinator.join, daemon=True)
    joined.start()
    joined.join(20)
    hung = joined.is_alive()
    take_in(coordinator, W1)
    joined.join(20)
    assert not hung
    assert value._values[1].get()


def test_a_program_that_holds_all_results_has_few_on_workers(connect, counted):
    """Those that are lost are computed again, so their effects are had twice."""
    coordinator = tfps.ClusterCoordinator(connect(workers=1))
    values = [coordinator.schedule(counted()) for _ in range(300)]
    eventually(lambda: all(value._ready for value in values))
    away = [
        value for value in values if held._is_on_worker(value) and not value._result.is_on_chief
    ]
    assert len(away) <= 128
    coordinator.join()
    assert sorted(int(one[0]) for one in coordinator.fetch(values)) == list(range(1, 301))
