"""What is scheduled, and what is fetched."""

import gc
import re
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf

from tests.coordinator.conftest import BOTH, UNRAISABLE, Point
from tfps import _tf
from tfps.coordinator import held

pytestmark = UNRAISABLE


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
    assert _tf.chief_device() in value.get()["a"].device
    assert coordinator.schedule(tf.function(lambda: None)).fetch() is None
    if kind == "tfps":  # TensorFlow's cannot copy a None among tensors.
        f = tf.function(lambda: (tf.constant(1), None))
        assert coordinator.schedule(f).fetch() == (1, None)
    both = coordinator.fetch({"x": (value, 7)})
    np.testing.assert_array_equal(both["x"][0]["a"], [2, 3])
    assert both["x"][1] == 7


@BOTH
@pytest.mark.parametrize("size", [1, 500])
def test_results_are_on_their_worker_for_whoever_looks(make, kind, size):
    """Small results come from a buffer; larger ones are there as they are."""
    coordinator = make(kind)
    both = tf.function(lambda x: {"a": tf.fill([size], x), "b": tf.constant("s")})
    early, late = (coordinator.schedule(both, args=(i,)) for i in (1, 2))
    coordinator.join()
    for value in early, late:
        if value is late:
            coordinator.fetch([early, late])
        found = value._values
        for tensor in tf.nest.flatten(found):
            assert re.match(r"/job:worker/replica:0/task:[01]/device:CPU:0", tensor.device)
        np.testing.assert_array_equal(found["a"], value.fetch()["a"])
        assert found["b"].numpy() == b"s"
        assert value._values is found
    assert coordinator.schedule(tf.function(lambda: None))._values is None


def test_where_there_is_no_result_there_is_none_on_the_worker(make, gate, positive):
    coordinator = make(workers=1)
    value = coordinator.schedule(gate.function())
    assert value._values is None
    gate.open()
    assert value.fetch()
    assert value._values.numpy()
    bad = coordinator.schedule(positive, args=(tf.constant(-1),))
    with pytest.raises(tf.errors.InvalidArgumentError):
        coordinator.join()
    assert bad._values is None


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
def test_results_that_cannot_be_stacked(make, kind):
    coordinator = make(kind)
    f = tf.function(lambda x: tf.bitcast(x, tf.qint8))
    quantized = [coordinator.schedule(f, args=(tf.constant(i, tf.int8),)) for i in range(3)]
    assert len(coordinator.fetch(quantized)) == 3


def test_threads_may_fetch_the_same_results(make, monkeypatch):
    """One forgets what is on the worker while the other is about to copy it."""
    coordinator = make()
    f = tf.function(tf.strings.as_string)
    results = [coordinator.schedule(f, args=(tf.constant(i),)) for i in range(3)]
    copy = held._copy

    def late(group):
        monkeypatch.setattr(held, "_copy", copy)
        assert coordinator.fetch(results) == [b"0", b"1", b"2"]  # As another thread would.
        return copy(group)

    monkeypatch.setattr(held, "_copy", late)
    assert coordinator.fetch(results) == [b"0", b"1", b"2"]
    assert held._copy is copy


@BOTH
def test_results_that_nobody_keeps(make, kind):
    """What a function does is done all the same, and its errors are raised."""
    coordinator = make(kind)
    with coordinator.strategy.scope():
        total = tf.Variable(0)
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["a"], tf.constant([5])), -1
        )
    traced = []

    @tf.function
    def add(it, key, x):
        traced.append(1)
        index = tf.distribute.coordinator.experimental_get_current_worker_index()
        return total.assign_add(next(it) + table.lookup(key) + tf.size(x)), index

    made = coordinator.create_per_worker_dataset(lambda: tf.data.Dataset.from_tensors(2).repeat())
    iterator = iter(made)
    for _ in range(10):
        coordinator.schedule(add, args=(iterator, tf.constant("a"), tf.zeros([3])))
    coordinator.join()
    assert total.numpy() == 10 * (2 + 5 + 3)
    last, index = coordinator.schedule(add, args=(iterator, tf.constant("a"), tf.ones([3]))).fetch()
    assert last == 110
    assert index in (0, 1)
    assert len(traced) == 1

    @tf.function
    def pick(x, i):
        return tf.gather(x, i)  # Neither stateful nor used.

    for i in (0, 1, 7):
        coordinator.schedule(pick, args=(tf.zeros([3]), tf.constant(i)))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"= 7 is not in \[0, 3\)"):
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


@pytest.mark.parametrize("kwargs", [{}, {"c": tf.constant(1.0)}, {"b": 2}, {"c": 1.0, "b": 2.0}])
def test_defaults_of_keywords(make, kwargs):
    f = tf.function(lambda a, b=3.0, *, c=4.0: a * b + c)
    a = tf.constant(2.0)
    assert make().schedule(f, args=(a,), kwargs=kwargs).fetch() == f(a, **kwargs)


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
    # Several, since TensorFlow was seen to keep the frames of one tracing.
    functions = [tf.function(lambda x: x + 1) for _ in range(4)]
    coordinator.fetch([coordinator.schedule(f, args=(1,)) for f in functions])
    coordinator.join()
    known = [weakref.ref(f) for f in functions]
    del functions
    deadline = time.monotonic() + 10
    while all(f() is not None for f in known) and time.monotonic() < deadline:
        gc.collect()  # It does nothing while another thread collects.
    assert any(f() is None for f in known)
