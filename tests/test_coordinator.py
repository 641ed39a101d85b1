"""`tfps.ClusterCoordinator`; what both promise is asked of TensorFlow's own as well."""

import collections
import gc
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps import backlog, closures, faults

# TensorFlow's executors complain when they are collected after an error.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STOCK = tf.distribute.coordinator.ClusterCoordinator
BOTH = pytest.mark.parametrize("kind", ["tfps", "stock"])
Point = collections.namedtuple("Point", "x y")


@pytest.fixture
def make(connect):
    """`make(kind, workers)`: a coordinator on a strategy of the same kind."""

    def get(kind="tfps", workers=2):
        strategy = connect(workers)
        if kind == "stock":
            return STOCK(tf.distribute.ParameterServerStrategy(strategy.cluster.resolver()))
        return tfps.ClusterCoordinator(strategy)

    return get


def calling(function):
    """A `tf.function` that calls Python: embedded workers share this process."""

    @tf.function
    def call():
        return tf.ensure_shape(tf.numpy_function(function, [], tf.bool), [])

    return call


@pytest.fixture
def gate():
    """A function that waits on its worker until `gate.open()`."""

    class Gate:
        def __init__(self):
            self._opened, self.entered = threading.Event(), threading.Semaphore(0)
            self.open = self._opened.set

        def wait(self):
            self.entered.release()
            return np.bool_(self._opened.wait(30))

        def function(self):
            return calling(self.wait)

    made = Gate()
    yield made
    made.open()


# Connecting to a cluster of another size makes servers forget the functions that they knew.


@pytest.fixture
def double():
    return tf.function(lambda x: 2 * x)


@pytest.fixture
def positive():
    @tf.function
    def f(x):
        tf.debugging.assert_greater(x, 0, "not positive")
        return x

    return f


# What is fetched.


@BOTH
def test_results_have_the_structure_that_was_returned(make, kind):
    coordinator = make(kind)

    @tf.function
    def nested(x):
        return {"a": x + 1, "b": (x, [tf.constant("s")])}

    value = coordinator.schedule(nested, args=(tf.constant([1, 2]),))
    fetched = value.fetch()
    np.testing.assert_array_equal(fetched["a"], [2, 3])
    np.testing.assert_array_equal(fetched["b"][0], [1, 2])
    assert fetched["b"][1] == [b"s"]
    assert "job:chief" in value.get()["a"].device
    assert coordinator.schedule(tf.function(lambda: None)).fetch() is None
    if kind == "tfps":  # TensorFlow's cannot copy a None among tensors.
        f = tf.function(lambda: (tf.constant(1), None))
        assert coordinator.schedule(f).fetch() == (1, None)
    both = coordinator.fetch({"x": (value, 7)})
    np.testing.assert_array_equal(both["x"][0]["a"], [2, 3])
    assert both["x"][1] == 7


@BOTH
def test_many_results_at_once(make, kind, positive):
    coordinator = make(kind)

    @tf.function
    def f(x):
        return {"x": x, "text": tf.strings.as_string(x)}

    large = tf.function(lambda x: tf.fill([5000], x))
    values = [coordinator.schedule(f, args=(tf.constant(i),)) for i in range(300)]
    values += [coordinator.schedule(large, args=(tf.constant(i),)) for i in range(3)]
    assert values[7].fetch()["x"] == 7
    fetched = coordinator.fetch([values, values[:1], 5])
    assert [v["x"] for v in fetched[0][:300]] == list(range(300))
    assert [v["text"] for v in fetched[0][:300]] == [b"%d" % i for i in range(300)]
    assert [v.sum() for v in fetched[0][300:]] == [0, 5000, 10000]
    assert fetched[1:] == [[{"x": 0, "text": b"0"}], 5]
    bad = coordinator.schedule(positive, args=(tf.constant(-1),))
    with pytest.raises(tf.errors.InvalidArgumentError):
        coordinator.fetch([values, bad])
    with pytest.raises(tf.errors.InvalidArgumentError):
        coordinator.join()


@BOTH
@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((tf.constant(5.0),), None, 3.0),
        ((5.0, 4.0), None, 1.0),
        ((np.float32(5), np.ones([2], np.float32)), None, [4, 4]),
        ((tf.ones([2]), np.ones([2], np.float32)), {}, [0, 0]),
        (None, {"b": tf.constant(1.0), "a": tf.constant(5.0)}, 4.0),
        ([tf.constant(5.0)], {"b": 1}, 4.0),
    ],
)
def test_arguments(make, kind, args, kwargs, expected):
    coordinator = make(kind)

    @tf.function
    def subtract(a, b=2.0):
        return a - tf.cast(b, tf.float32)

    for _ in range(3):  # The first call decides how inputs are laid out, later ones rely on it.
        value = coordinator.schedule(subtract, args=args, kwargs=kwargs)
        np.testing.assert_array_equal(value.fetch(), expected)


@BOTH
def test_keywords_in_another_order_than_the_functions(make, kind):
    coordinator = make(kind)

    @tf.function
    def subtract(a, b):
        return a - b

    one, two, five = tf.constant(1), tf.constant(2), tf.constant(5)
    for a, b in [(one, one), (one, two), (five, one)]:
        assert coordinator.schedule(subtract, kwargs={"b": b, "a": a}).fetch() == a - b


@BOTH
def test_structures_that_only_tensorflow_knows(make, kind):
    coordinator = make(kind)
    value = tf.Variable(3.0)

    @tf.function
    def norm(point, ragged):
        return point.x * point.y + tf.reduce_sum(ragged)

    ragged = tf.ragged.constant([[1.0], [2.0, 3.0]])
    for _ in range(2):
        found = coordinator.schedule(norm, args=(Point(value.read_value(), 2.0), ragged))
        assert found.fetch() == 12


@BOTH
def test_a_concrete_function(make, kind, double):
    coordinator = make(kind)
    graph = double.get_concrete_function(tf.TensorSpec([], tf.float32))
    for x in (1.0, 4.0):
        assert coordinator.schedule(graph, args=(tf.constant(x),)).fetch() == 2 * x


@BOTH
def test_a_function_is_traced_once_for_a_signature(make, kind):
    coordinator = make(kind)
    traced = []

    @tf.function
    def f(x):
        traced.append(x.shape)
        return x

    for _ in range(3):
        for shape in ([], [2]):
            coordinator.schedule(f, args=(tf.zeros(shape),))
    coordinator.join()
    assert traced == [[], [2]]


def test_what_is_known_of_a_function_goes_with_it(make):
    coordinator = make()
    f = tf.function(lambda x: x + 1)
    coordinator.schedule(f, args=(1,)).fetch()
    coordinator.join()
    known = weakref.ref(f)
    del f
    gc.collect()
    assert known() is None


# Joining.


@BOTH
def test_join_waits_for_everything(make, kind, gate):
    coordinator = make(kind)
    with coordinator.strategy.scope():
        total = tf.Variable(0)
    blocked = coordinator.schedule(gate.function())

    @tf.function
    def add():
        total.assign_add(1, use_locking=True)

    for _ in range(20):
        coordinator.schedule(add)
    assert gate.entered.acquire(timeout=10)
    assert not coordinator.done()
    gate.open()
    coordinator.join()
    assert coordinator.done()
    assert total.numpy() == 20
    assert blocked.fetch()


@BOTH
def test_one_worker_runs_in_order(make, kind):
    coordinator = make(kind, workers=1)
    with coordinator.strategy.scope():
        last = tf.Variable(0)

    @tf.function
    def exchange(x):
        before = last.read_value()
        with tf.control_dependencies([before]):
            last.assign(x)
        return before

    values = [coordinator.schedule(exchange, args=(tf.constant(i),)) for i in range(1, 9)]
    assert coordinator.fetch(values) == list(range(8))


def test_a_slow_worker_does_not_hold_up_the_others(make, gate, double):
    coordinator = make(workers=2)
    coordinator.schedule(gate.function())
    assert gate.entered.acquire(timeout=10)
    assert coordinator.fetch([coordinator.schedule(double, args=(i,)) for i in range(4)]) == [
        0,
        2,
        4,
        6,
    ]
    assert not coordinator.done()
    gate.open()
    # A process must not connect anew while a function of its own waits for Python.
    coordinator.join()


@BOTH
def test_schedule_blocks_while_the_queue_is_full(make, kind, gate, monkeypatch, double):
    if kind == "stock":
        stock_module = __import__(STOCK.__module__, fromlist=["*"])
        monkeypatch.setattr(stock_module, "_CLOSURE_QUEUE_MAX_SIZE", 2)
    else:
        monkeypatch.setattr(backlog, "_LIMIT", 2)
    coordinator = make(kind, workers=1)
    coordinator.schedule(gate.function())
    assert gate.entered.acquire(timeout=10)
    scheduled = threading.Semaphore(0)

    def fill():
        for i in range(3):
            coordinator.schedule(double, args=(i,))
            scheduled.release()

    thread = threading.Thread(target=fill)
    thread.start()
    assert scheduled.acquire(timeout=10)
    assert scheduled.acquire(timeout=10)
    assert not scheduled.acquire(timeout=0.2)
    gate.open()
    assert scheduled.acquire(timeout=10)
    thread.join()
    coordinator.join()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_calls_in_flight_on_one_worker(connect, in_flight):
    coordinator = tfps.ClusterCoordinator(connect(workers=1), in_flight=in_flight)
    meeting = threading.Barrier(2)

    def meet():
        try:
            meeting.wait(timeout=10 if in_flight == 2 else 0.2)
        except threading.BrokenBarrierError:
            return np.False_
        return np.True_

    f = calling(meet)
    assert coordinator.fetch([coordinator.schedule(f) for _ in range(2)]) == [in_flight == 2] * 2


def test_fewer_calls_in_flight(connect, double):
    coordinator = tfps.ClusterCoordinator(connect(workers=1), in_flight=3)
    for in_flight in (3, 1, 2):
        coordinator.__init__(coordinator.strategy, in_flight=in_flight)
        assert coordinator.in_flight == in_flight
        coordinator.fetch([coordinator.schedule(double, args=(1,)) for _ in range(9)])


def test_what_is_remembered_of_a_function_has_a_bound(connect, monkeypatch):
    """Python numbers that TensorFlow takes as one tensor make no graphs, and fill no memory."""
    monkeypatch.setattr(closures, "_SIGNATURES", 5)
    coordinator = tfps.ClusterCoordinator(connect(workers=1))
    twice = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([], tf.int32)])
    values = [coordinator.schedule(twice, args=(i,)) for i in range(40)]
    assert coordinator.fetch(values) == [2 * i for i in range(40)]
    _, known = twice._tfps_traces
    assert len(known) <= 6


# Per-worker values.


@BOTH
@pytest.mark.parametrize("source", ["function", "dataset", "distributed function", "distributed"])
def test_per_worker_dataset(make, kind, source):
    coordinator = make(kind)
    strategy = coordinator.strategy

    def dataset():
        return tf.data.Dataset.range(100).map(lambda x: x + 7)

    made = coordinator.create_per_worker_dataset(
        {
            "function": lambda: dataset,
            "dataset": dataset,
            "distributed function": lambda: (
                lambda: strategy.distribute_datasets_from_function(lambda context: dataset())
            ),
            "distributed": lambda: strategy.experimental_distribute_dataset(dataset()),
        }[source]()
    )
    traced = []

    @tf.function
    def step(batch):
        traced.append(1)
        return strategy.run(lambda x: 2 * x, args=(next(batch["nested"][0]),))

    for _ in range(2):  # Iterators of one dataset share a trace.
        iterator = iter(made)
        arguments = [{"nested": [iterator], "other": 1}]
        values = coordinator.fetch([coordinator.schedule(step, arguments) for _ in range(12)])
        # Each worker has the whole dataset, in order.
        counts = collections.Counter(values)
        assert sum(counts.values()) == 12
        assert max(counts.values()) <= 2
        assert min(values) == 14
    assert len(traced) == 1


@BOTH
def test_the_end_of_a_dataset_is_out_of_range(make, kind):
    coordinator = make(kind, workers=1)
    iterator = iter(coordinator.create_per_worker_dataset(lambda: tf.data.Dataset.range(3)))
    f = tf.function(lambda it: next(it))
    for _ in range(5):
        coordinator.schedule(f, args=(iterator,))
    with pytest.raises(tf.errors.OutOfRangeError):
        coordinator.join()


@BOTH
def test_resources_of_the_strategys_scope_are_those_of_the_worker(make, kind):
    coordinator = make(kind)
    with coordinator.strategy.scope():
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64)), -1
        )

    @tf.function
    def f(key):
        index = tf.distribute.coordinator.experimental_get_current_worker_index()
        return table.lookup(key), index

    keys = [tf.constant(k) for k in ("a", "b", "c", "a", "b", "c")]
    values = coordinator.fetch([coordinator.schedule(f, args=(k,)) for k in keys])
    assert [v for v, _ in values] == [1, 2, -1, 1, 2, -1]
    assert {index for _, index in values} <= {0, 1}


@BOTH
def test_a_dataset_that_cannot_be_made_fails_what_uses_it(make, kind):
    coordinator = make(kind, workers=1)

    def dataset():
        tf.debugging.assert_equal(tf.random.uniform([]), -1.0, "no such data")
        return tf.data.Dataset.range(3)

    iterator = iter(coordinator.create_per_worker_dataset(dataset))
    coordinator.schedule(tf.function(lambda it: next(it)), args=(iterator,))
    with pytest.raises(Exception, match="no such data"):
        coordinator.join()


# Errors.


@BOTH
@pytest.mark.parametrize("surface", ["join", "schedule", "done"])
def test_an_error_cancels_the_queue_and_is_raised_once(make, kind, surface, gate, positive):
    coordinator = make(kind, workers=1)
    coordinator.schedule(gate.function())
    assert gate.entered.acquire(timeout=10)
    bad = coordinator.schedule(positive, args=(tf.constant(-1),))
    later = [coordinator.schedule(positive, args=(tf.constant(1),)) for _ in range(3)]
    gate.open()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        bad.fetch()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not positive"):
        if surface == "schedule":
            coordinator.schedule(positive, args=(tf.constant(1),))
        elif surface == "done":
            coordinator.done()
        else:
            coordinator.join()
    for value in later:
        if kind == "tfps":
            with pytest.raises(tf.errors.CancelledError, match="schedule it again"):
                value.get()
    coordinator.join()
    assert coordinator.done()
    assert coordinator.schedule(positive, args=(tf.constant(2),)).fetch() == 2
    coordinator.join()


def test_an_error_names_the_worker(make, positive):
    coordinator = make(workers=2)
    address = coordinator.strategy.cluster.spec["worker"]
    value = coordinator.schedule(positive, args=(tf.constant(-1),))
    with pytest.raises(tfps.WorkerError, match=r"worker \d \(\S+\) failed: .*not posi") as caught:
        coordinator.join()
    error = caught.value
    assert isinstance(error, tf.errors.InvalidArgumentError)
    assert error.error_code == tf.errors.INVALID_ARGUMENT
    assert error.address == address[error.worker]
    assert error.address in str(error)
    assert "not positive" in error.message
    assert isinstance(error.__cause__, tf.errors.InvalidArgumentError)
    with pytest.raises(tfps.WorkerError):
        value.get()


def test_an_error_of_python_names_the_worker(make, double):
    coordinator = make(workers=1)
    resource = coordinator._create_per_worker_resources(lambda: 1 // 0)
    coordinator.schedule(
        tf.function(lambda x: x).get_concrete_function(tf.TensorSpec([])), resource
    )
    with pytest.raises(ZeroDivisionError) as caught:
        coordinator.join()
    assert "worker 0 (127.0.0.1:" in caught.value.__notes__[0]


@BOTH
def test_what_cannot_be_scheduled(make, kind, double):
    coordinator = make(kind)
    value = coordinator.schedule(double, args=(1,))
    for args, kwargs in [((value,), None), (None, {"x": [value]}), ((Point(value, 1),), None)]:
        with pytest.raises(ValueError, match="RemoteValue"):
            coordinator.schedule(double, args=args, kwargs=kwargs)
    with pytest.raises(TypeError, match=r"tf\.function"):
        coordinator.schedule(lambda: 1)
    coordinator.join()


def test_an_error_while_tracing_leaves_the_coordinator_usable(make, double):
    coordinator = make()
    with pytest.raises(TypeError):
        coordinator.schedule(double, args=(1, 2))
    assert coordinator.schedule(double, args=(1,)).fetch() == 2


@pytest.mark.parametrize("wait", ["join", "fetch", "done", "schedule"])
def test_a_lost_server_is_noticed_by_whoever_waits(make, gate, monkeypatch, wait, double):
    coordinator = make(workers=1)
    value = coordinator.schedule(gate.function())
    waiting = coordinator.schedule(double, args=(1,))
    assert gate.entered.acquire(timeout=10)
    monkeypatch.setattr(backlog, "_PATIENCE", 0.05)
    monkeypatch.setattr(backlog, "_DRAIN", 0.1)
    monkeypatch.setattr(backlog, "_LIMIT", 1)
    monkeypatch.setattr(faults.net, "answers", lambda address, timeout: False)
    with pytest.raises(tfps.TaskLost, match=r"worker 0 .* no longer answer") as caught:
        if wait == "fetch":
            value.get()
        elif wait == "schedule":
            coordinator.schedule(double, args=(1,))
        elif wait == "join":
            coordinator.join()
        else:
            while not coordinator.done():
                threading.Event().wait(0.01)
    assert isinstance(caught.value, tf.errors.UnavailableError)
    with pytest.raises(tf.errors.CancelledError):
        waiting.get()
    if wait == "fetch":
        with pytest.raises(tfps.TaskLost):
            coordinator.join()
    monkeypatch.undo()
    gate.open()
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    coordinator.join()


# What it is.


def test_a_strategy_has_one_and_tensorflow_finds_it(connect, double):
    strategy = connect()
    with strategy.scope():
        pass
    coordinator = tfps.ClusterCoordinator(strategy)
    assert type(coordinator) is tfps.ClusterCoordinator
    assert isinstance(coordinator, STOCK)
    assert STOCK(strategy) is coordinator
    assert tfps.ClusterCoordinator(strategy, in_flight=2) is coordinator
    assert STOCK(strategy).in_flight == 2
    assert coordinator.strategy is strategy
    value = coordinator.schedule(double, args=(1,))
    assert isinstance(value, tf.distribute.coordinator.RemoteValue)
    assert isinstance(value, tfps.RemoteValue)


def test_on_tensorflows_strategy(connect, double):
    strategy = tf.distribute.ParameterServerStrategy(connect(2).cluster.resolver())
    coordinator = tfps.ClusterCoordinator(strategy)
    assert coordinator.schedule(double, args=(1,)).fetch() == 2
    taken = tf.distribute.ParameterServerStrategy(connect(2).cluster.resolver())
    STOCK(taken)
    with pytest.raises(tfps.ConfigError, match="already"):
        tfps.ClusterCoordinator(taken)


def test_what_it_refuses(connect):
    with pytest.raises(tfps.ConfigError, match="_DefaultDistributionStrategy"):
        tfps.ClusterCoordinator(tf.distribute.get_strategy())
    with pytest.raises(tfps.ConfigError, match=r"in_flight=9; .* 1 to 4"):
        tfps.ClusterCoordinator(connect(), in_flight=9)


def test_its_threads_end_with_it(connect):
    def lanes():
        return {t for t in threading.enumerate() if t.name.startswith("tfps-worker-0.")}

    gc.collect()
    before = lanes()
    coordinator = tfps.ClusterCoordinator(connect(workers=1))
    assert lanes() == before  # None before there is work.
    f = tf.function(lambda: None)
    coordinator.schedule(f).fetch()
    (mine,) = lanes() - before
    del coordinator, f
    gc.collect()
    mine.join(10)
    assert not mine.is_alive()
