"""Graphs called on workers, with tensors and with numbers."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps import _tf_functions
from tfps.cluster.devices import ps_device, worker_device
from tfps.cluster.remote_function import RemoteFunction

COUNT, NUMBER, RATE = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
NUMBERS = {"count": COUNT, "number": NUMBER, "rate": RATE}


class State(NamedTuple):
    handles: dict[str, Any]
    source: Any
    targets: Any = None


@pytest.fixture
def worker(connect):
    """Everything in the test happens under the device of worker 1."""
    connect(workers=2)
    with tf.device(worker_device(1)):
        yield


def on_ps(value, index=0):
    with tf.device(ps_device(index)):
        return tf.Variable(value)


def test_numbers_arrive_as_they_are(worker):
    def told(count, number, rate):
        assert (count.dtype, number.dtype, rate.dtype) == (tf.int32, tf.int64, tf.float32)
        return {"count": count, "number": number, "rate": rate}

    f = RemoteFunction(told, numbers=NUMBERS)
    for count, number, rate in [
        (-1, 2**40, 0.1),
        (np.int64(7), np.int8(-3), 1),
        (0, -1, float("inf")),
    ]:
        found = f(rate=rate, number=number, count=count)
        assert found["count"].numpy() == count
        assert found["number"].numpy() == number
        assert found["rate"].numpy() == np.float32(rate)
        assert all("worker/replica:0/task:1" in t.device for t in found.values())


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (tf.bool, True), (tf.bool, False), (tf.int8, -128), (tf.uint8, 255), (tf.float16, 0.5),
        (tf.bfloat16, -2.5), (tf.uint64, 2**64 - 1), (tf.float64, 0.1),
    ],
)  # fmt: skip
def test_numbers_of_every_kind(worker, dtype, value):
    f = RemoteFunction(lambda x: x, numbers={"x": tf.TensorSpec([], dtype)})
    assert f(x=value).dtype == dtype
    assert f(x=value).numpy() == value


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"count": 1.5}, TypeError),
        ({"count": 2**31}, OverflowError),
        ({"number": None}, TypeError),
        ({"rate": "much"}, ValueError),
        ({"more": 1}, tfps.ConfigError),
    ],
)
def test_numbers_that_do_not_fit(worker, given, error):
    f = RemoteFunction(lambda count, number, rate: rate, numbers=NUMBERS)
    with pytest.raises(error):
        f(**{"count": 1, "number": 1, "rate": 1.0, **given})
    with pytest.raises(tfps.ConfigError, match=r"takes \['count', 'number', 'rate'\]"):
        f(count=1)


def test_numbers_cross_as_bytes_that_the_worker_has(worker, monkeypatch):
    given = []
    call = _tf_functions.FlatFunction.__call__

    def noted(self, inputs):
        given.append(inputs)
        return call(self, inputs)

    monkeypatch.setattr(_tf_functions.FlatFunction, "__call__", noted)
    x = tf.constant(2.0)
    f = RemoteFunction(lambda x, count, number, rate: rate + x, RATE, numbers=NUMBERS)
    for number in range(3):
        assert f(x, count=number, number=number, rate=3.0).numpy() == 5
    *digits, same = given[1]
    assert same is x
    assert [t.numpy() for t in digits] == [1, 0, 0, 0, 1, *7 * [0], 0, 0, 0x40, 0x40]
    assert all("worker/replica:0/task:1" in t.device for t in digits)
    # The worker has a tensor for each byte.
    assert len({id(t) for inputs in given for t in inputs[:-1]}) == len({0, 1, 2, 0x40})


def test_handles_lead_to_variables_that_may_be_replaced(worker):
    def add(state, rate):
        values = {
            name: tf.raw_ops.ReadVariableOp(resource=h, dtype=tf.float32)
            for name, h in state.handles.items()
        }
        # The shape is known from the tensor that stood for the handle.
        assert values["b"].shape == [3]
        tf.raw_ops.AssignAddVariableOp(resource=state.handles["a"], value=values["b"] * rate)
        return values

    # In another order than that of the names.
    variables = {"b": on_ps([1.0, 2.0, 3.0], 1), "a": on_ps([0.0, 0.0, 0.0])}
    handles = {name: v.handle for name, v in variables.items()}
    f = RemoteFunction(add, State(handles, ()), numbers={"rate": RATE})
    f(State(handles, ()), rate=2)
    np.testing.assert_array_equal(variables["a"].numpy(), [2, 4, 6])
    other = on_ps([5.0, 5.0, 5.0])
    f(State({"a": other.handle, "b": handles["b"]}, ()), rate=1)
    np.testing.assert_array_equal(other.numpy(), [6, 7, 8])
    np.testing.assert_array_equal(variables["a"].numpy(), [2, 4, 6])


def test_iterators_are_read_on_the_worker(worker):
    def sum_of(iterator, count):
        total = tf.constant(0, tf.int64)
        for _ in range(2):
            x, missing = iterator.get_next()
            assert missing is None
            total += x
        return total * tf.cast(count, tf.int64)

    def numbers(start):
        return iter(tf.data.Dataset.range(start, start + 4).map(lambda x: (x, None)))

    first, second = numbers(0), numbers(10)
    f = RemoteFunction(sum_of, first, numbers={"count": COUNT})
    assert [f(it, count=1).numpy() for it in (first, second, first)] == [1, 21, 5]
    with pytest.raises(tf.errors.OutOfRangeError):
        f(first, count=1)
    by_spec = RemoteFunction(sum_of, first._type_spec, numbers={"count": COUNT})
    assert by_spec(second, count=2).numpy() == 50


def test_what_is_missing_stays_missing(worker):
    def told(batch, nothing, empty):
        assert nothing == () and empty == {}
        x, y, weights = batch
        assert y is None
        return State({}, x, None), weights, [], None

    f = RemoteFunction(told, (tf.TensorSpec([None, 2]), None, tf.TensorSpec([None])), (), {})
    for rows in (2, 0):
        batch = (tf.ones([rows, 2]), None, tf.zeros([rows]))
        state, weights, empty, nothing = f(batch, (), {})
        assert isinstance(state, State)
        assert state.source.shape == [rows, 2]
        assert (state.handles, state.targets, empty, nothing) == ({}, None, [], None)
        assert weights.shape == [rows]


def test_ragged_and_sparse_tensors_and_arrays(worker):
    def told(ragged, sparse, dense):
        return tf.reduce_sum(ragged.to_tensor()) + tf.sparse.reduce_sum(sparse) + dense

    specs = tf.RaggedTensorSpec([None, None]), tf.SparseTensorSpec([None, 4]), tf.TensorSpec([])
    f = RemoteFunction(told, *specs)
    ragged = tf.ragged.constant([[1.0], [2.0, 3.0]])
    sparse = tf.sparse.from_dense([[0.0, 4.0, 0.0, 0.0]])
    assert f(ragged, sparse, np.float32(0.5)).numpy() == 10.5
    assert f(ragged, sparse, 0.5).numpy() == 10.5


def test_nothing_in_and_nothing_out(worker):
    counter = on_ps(0)

    def count():
        counter.assign_add(1)

    f = RemoteFunction(count)
    assert f() is None
    assert counter.numpy() == 1


def test_what_is_captured_comes_along(worker):
    tensor, variable = tf.constant([1.0, 2.0]), on_ps(3.0)
    f = RemoteFunction(lambda rate: tensor * variable * rate, numbers={"rate": RATE})
    np.testing.assert_array_equal(f(rate=2).numpy(), [6, 12])
    variable.assign(1.0)
    np.testing.assert_array_equal(f(rate=2).numpy(), [2, 4])


def test_resources_do_not_come_back(worker):
    with pytest.raises(tfps.ConfigError, match="returned returns a handle"):

        def returned(h):
            return h

        RemoteFunction(returned, on_ps(1.0).handle)


def test_structured_outputs_give_specs(worker):
    def told(x, count):
        return State({"b": x, "a": tf.cast(x, tf.int32)}, [None], count)

    f = RemoteFunction(told, tf.TensorSpec([None, 3]), numbers={"count": COUNT})
    form = f.structured_outputs
    assert isinstance(form, State)
    assert form.handles["b"].shape.as_list() == [None, 3]
    assert (form.handles["a"].dtype, form.targets.dtype) == (tf.int32, tf.int32)
    assert form.source == [None]
    # They are specs for another function.
    g = RemoteFunction(lambda state: state.targets, form)
    assert g(f(tf.zeros([1, 3]), count=4)).numpy() == 4


def test_errors_are_tensorflows_and_say_what_is_wrong(worker):
    def check(x, count):
        tf.debugging.assert_equal(x, count, "not equal")
        return x

    f = RemoteFunction(check, COUNT, numbers={"count": COUNT})
    with pytest.raises(tf.errors.InvalidArgumentError, match="not equal") as caught:
        f(tf.constant(1), count=2)
    assert "check" in str(caught.value)
    assert tfps.errors.summary(caught.value.message).startswith("assertion failed: [not equal]")
    assert f(tf.constant(2), count=2).numpy() == 2


def test_other_tensors_than_it_was_traced_for(worker):
    f = RemoteFunction(lambda pair, rate: pair[0] * rate, (RATE, None), numbers={"rate": RATE})
    with pytest.raises(tfps.ConfigError, match="given 2 tensors and takes 1"):
        f((tf.constant(1.0), tf.constant(1.0)), rate=1)
    with pytest.raises(tf.errors.InvalidArgumentError):
        f((tf.constant("text"), None), rate=1)
    with pytest.raises(tfps.ConfigError, match="7 is among the specs"):
        RemoteFunction(lambda x: x, 7)
    assert f((tf.constant(3.0), None), rate=2).numpy() == 6


def test_compiled_functions(worker):
    @tf.function(jit_compile=True)
    def twice(x, rate):
        return 2 * x * rate

    f = RemoteFunction(twice, tf.TensorSpec([3]), numbers={"rate": RATE})
    np.testing.assert_array_equal(f(tf.ones([3]), rate=2).numpy(), [4, 4, 4])


def test_one_graph_for_every_worker(connect):
    connect(workers=2)
    f = RemoteFunction(lambda rate: rate + 1, numbers={"rate": RATE})
    for w in range(2):
        with tf.device(worker_device(w)):
            assert f"task:{w}" in f(rate=1).device
