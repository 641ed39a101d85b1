"""Workers and parameter servers that die and come back: TensorFlow's fault-tolerance tests.

They follow the list of TensorFlow's own tests (`fault_tolerance_test_base.py`), with real
processes, and ask for the same and more.
"""

import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute.coordinator import metric_utils

import tfps
from tests.cluster.fleet import Fleet
from tests.coordinator.conftest import UNRAISABLE
from tfps.cluster.members import Task

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240), UNRAISABLE]

W0, W1, P0, P1 = Task("worker", 0), Task("worker", 1), Task("ps", 0), Task("ps", 1)


class Model:
    """Adds up on the servers what two per-worker iterators give, in steps that may last."""

    def __init__(self, coordinator):
        self.coordinator = coordinator
        with coordinator.strategy.scope():
            self.w = tf.Variable(tf.zeros([4, 4]))
            self.iterations = tf.Variable(0)
            self.lasting = tf.Variable(False)
        self.make_iterators()

    def make_iterators(self, of_function=True):
        coordinator = self.coordinator

        def dataset():
            return tf.data.Dataset.from_tensors(tf.ones([4, 4])).repeat()

        def of_strategy():
            return coordinator.strategy.distribute_datasets_from_function(lambda _: dataset())

        given = of_strategy if of_function else dataset()
        self.iterators = [
            iter(coordinator.create_per_worker_dataset(given)),
            iter(coordinator.create_per_worker_dataset(given)),
        ]

    @tf.function
    def step(self, one, other):
        self.w.assign_add(next(one) @ next(other))
        while self.lasting:
            self.w.assign_add(next(one) @ next(other))
        self.iterations.assign_add(1)

    def schedule(self, count):
        for _ in range(count):
            self.coordinator.schedule(self.step, args=tuple(self.iterators))

    def run_for_ever(self, count=10):
        """Schedules steps that last until `join`, and waits until all workers run one."""
        self.lasting.assign(True)
        self.schedule(count)
        queue = self.coordinator._cluster.closure_queue
        deadline = time.monotonic() + 60.0
        while queue.inflight_closure_count < self.coordinator.strategy.cluster.num_workers:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def join(self):
        self.lasting.assign(False)
        self.coordinator.join()


@pytest.fixture
def fleet(tmp_path):
    with Fleet(tmp_path, 2, 2) as started:
        started.wait(W0, W1, P0, P1)
        yield started


@pytest.fixture
def coordinator(fleet):
    made = tfps.ClusterCoordinator(tfps.ParameterServerStrategy(fleet.cluster))
    yield made
    made._queue.stop()


@pytest.fixture
def two():
    """A function; one that was traced in another connection has no graph on these workers."""
    return tf.function(lambda: tf.constant(2))


def test_a_worker_between_functions_and_in_their_midst(coordinator, fleet):
    def counted():
        updates = metric_utils.get_metric_summary("server_def_update")["num"]
        return metric_utils.get_metric_summary("worker_failures"), updates

    metric_utils.monitor_int("queued_closures", 0)  # Makes the metrics if there are none yet.
    before = counted()
    model = Model(coordinator)
    model.schedule(2)
    model.join()
    assert model.iterations.numpy() == 2
    assert counted() == before

    fleet.restart(W0)
    model.schedule(2)
    model.join()
    assert model.iterations.numpy() == 4

    model.run_for_ever(4)
    assert not coordinator.done()
    fleet.restart(W0, downtime=1.0)
    model.join()
    assert model.iterations.numpy() >= 8

    # Both workers are used again.
    known = coordinator._queue._members
    deadline = time.monotonic() + 30.0
    while known.lost():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Nobody need have noticed the first loss by a function.
    assert before[0] + 1 <= counted()[0] <= before[0] + 2
    assert counted()[1] >= before[1] + 2
    model.run_for_ever(2)
    model.join()


def test_all_workers_at_once_and_one_twice(coordinator, fleet, capfd):
    model = Model(coordinator)
    model.run_for_ever()
    for worker in (W0, W1):
        fleet.kill(worker)
    time.sleep(1.0)
    assert not coordinator.done()
    for worker in (W0, W1):
        fleet.start(worker)
    fleet.wait(W0, W1)
    model.join()
    assert model.iterations.numpy() >= 10

    model.run_for_ever()
    fleet.restart(W0, downtime=0.5)
    time.sleep(1.0)
    fleet.restart(W0, downtime=0.5)
    model.join()
    assert model.iterations.numpy() >= 20
    said = capfd.readouterr().err
    assert "tfps: worker 0 (127.0.0.1:" in said
    assert "is back" in said


def test_a_frozen_worker_costs_the_other_nothing(coordinator, fleet):
    with coordinator.strategy.scope():
        count = tf.Variable(0)

    @tf.function
    def add():
        count.assign_add(1)

    for _ in range(10):
        coordinator.schedule(add)
    coordinator.join()
    fleet.freeze(W0)
    before = count.numpy()
    for _ in range(100):
        coordinator.schedule(add)
    begun = time.monotonic()
    while count.numpy() < before + 99:
        assert time.monotonic() - begun < 5.0
        time.sleep(0.05)
    coordinator.join()
    assert time.monotonic() - begun < 20.0
    assert count.numpy() >= before + 100
    fleet.thaw(W0)


@pytest.mark.parametrize("of_function", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_worker_while_per_worker_datasets_are_made(coordinator, fleet, of_function):
    model = Model(coordinator)
    thread = threading.Thread(target=fleet.restart, args=(W0, 2.0))
    thread.start()
    for _ in range(3):
        model.schedule(3)
        model.make_iterators(of_function)
    model.schedule(3)
    model.join()
    thread.join()
    assert model.iterations.numpy() >= 12


def test_an_error_of_the_users_function_is_raised_once(coordinator, fleet, two):
    with coordinator.strategy.scope():
        go_on = tf.Variable(True)

    @tf.function
    def fail():
        tf.debugging.assert_negative(tf.random.uniform([], 1.0, 2.0), "mine")

    @tf.function
    def last():
        while go_on:
            pass
        return 1

    for _ in range(3):
        coordinator.schedule(two)
    lasting = coordinator.schedule(last)
    fleet.restart(W0)
    coordinator.schedule(fail)
    with pytest.raises(tf.errors.InvalidArgumentError, match="mine"):
        coordinator.join()
    with pytest.raises(tf.errors.CancelledError):
        lasting.fetch()
    values = [coordinator.schedule(two) for _ in range(6)]
    coordinator.join()
    assert coordinator.fetch(values) == [2] * 6


def test_results_of_a_lost_worker(coordinator, fleet, two):
    @tf.function
    def large():
        return tf.ones([5000])

    fetched, small, kept = (coordinator.schedule(f) for f in (large, two, large))
    coordinator.join()
    assert fetched.fetch().sum() == 5000
    remote = fetched._values
    assert remote.numpy().sum() == 5000
    late = [coordinator.schedule(f) for f in (two, large)]
    for value in late:
        value._wait()
    for worker in (W0, W1):
        fleet.kill(worker)
    # What was there when `join` returned needs no worker.
    assert fetched.fetch().sum() == 5000
    assert kept.fetch().sum() == 5000
    assert small.fetch() == 2
    with pytest.raises(tf.errors.UnavailableError, match="/job:worker/replica:0/task:"):
        remote.numpy()
    for worker in (W0, W1):
        fleet.start(worker)
    # What nobody had waited for is computed again.
    assert late[0].fetch() == 2
    assert late[1].fetch().sum() == 5000
    coordinator.join()


def test_a_worker_is_killed_between_a_function_and_its_join(coordinator, fleet, two):
    large = tf.function(lambda i: tf.fill([5000], i))
    small = [coordinator.schedule(two) for _ in range(100)]
    values = [coordinator.schedule(large, args=(tf.constant(i),)) for i in range(20)]
    for value in [*small, *values]:
        value._wait()
    fleet.kill(W0)
    coordinator.join()
    fleet.kill(W1)
    assert coordinator.fetch(small) == [2] * 100
    assert [x.sum() for x in coordinator.fetch(values)] == [5000 * i for i in range(20)]
    for worker in (W0, W1):
        fleet.start(worker)


def test_a_worker_freezes_between_a_function_and_its_join(coordinator, fleet):
    """It is lost after its patience, and the other computes what it held."""
    large = tf.function(lambda i: tf.fill([5000], i))
    values = [coordinator.schedule(large, args=(tf.constant(i),)) for i in range(20)]
    for value in values:
        value._wait()
    fleet.freeze(W0)
    begun = time.monotonic()
    coordinator.join()
    assert time.monotonic() - begun < 30.0
    assert [x.sum() for x in coordinator.fetch(values)] == [5000 * i for i in range(20)]
    fleet.thaw(W0)


def test_variables_are_read_while_a_worker_is_gone_and_back(coordinator, fleet):
    model = Model(coordinator)
    thread = threading.Thread(target=fleet.restart, args=(W0, 1.0))
    reads = 0
    thread.start()
    while thread.is_alive() or reads < 20:
        model.schedule(1)
        coordinator.join()
        model.iterations.numpy()
        reads += 1
    thread.join()
    assert model.iterations.numpy() >= reads


@pytest.mark.parametrize("wait", ["join", pytest.param("schedule", marks=pytest.mark.soak)])
def test_a_ps_is_lost_and_comes_back(coordinator, fleet, two, wait):
    model = Model(coordinator)
    with coordinator.strategy.scope():
        more = [tf.Variable(float(i)) for i in range(2)]
    kept = next(v for v in more if "ps/replica:0/task:1" in v.device)
    model.run_for_ever()
    fleet.kill(P0)
    with pytest.raises(tfps.TaskLost, match=r"ps 0 \(.*\) is gone.*variables are lost") as caught:
        if wait == "join":
            coordinator.join()
        else:
            while True:
                coordinator.schedule(two)
                time.sleep(0.05)
    assert isinstance(caught.value, tf.errors.UnavailableError)
    # What does not need the lost server goes on meanwhile.
    assert coordinator.schedule(two).fetch() == 2
    fleet.start(P0)
    deadline = time.monotonic() + 30.0
    while coordinator._queue._members.lost():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(tf.errors.OpError):
        coordinator.schedule(model.step, args=tuple(model.iterators))
        coordinator.join()
    assert kept.numpy() in (0.0, 1.0)
    again = Model(coordinator)
    again.schedule(4)
    again.join()
    assert again.iterations.numpy() == 4
    np.testing.assert_array_equal(again.w.numpy(), np.full([4, 4], 16.0))


def test_a_ps_and_a_worker_at_once(coordinator, fleet):
    model = Model(coordinator)
    model.run_for_ever()
    for task in (W0, P0):
        fleet.kill(task)
    for task in (W0, P0):
        fleet.start(task)
    with pytest.raises(tf.errors.OpError):
        coordinator.join()
    deadline = time.monotonic() + 40.0
    while coordinator._queue._members.lost():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    again = Model(coordinator)
    again.schedule(4)
    again.join()
    assert again.iterations.numpy() == 4
