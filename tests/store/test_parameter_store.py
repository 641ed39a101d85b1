import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import mlp
from tfps.model.inspection import Inspection
from tfps.model.stateless_model import StatelessModel
from tfps.store.parameter_store import ParameterStore
from tfps.store.plan import Plan
from tfps.store.pull import Puller

partitioners = tf.distribute.experimental.partitioners


def make(strategy, model):
    program = StatelessModel(model)
    n, m = len(program.trainable), len(program.state)
    inspection = Inspection([True] * n, [True] * m, [False] * n)
    optimizer = keras.optimizers.Adam()
    return ParameterStore(
        Plan(
            strategy.cluster.num_ps, strategy.variable_partitioner, program, optimizer, inspection
        ),
        optimizer,
    )


@pytest.mark.parametrize("partitioner", [None, partitioners.FixedShardsPartitioner(2)])
def test_fetch_brings_back_what_load_took(connect, partitioner):
    model = mlp(batch_norm=True)
    store = make(connect(partitioner=partitioner), model)
    before = model.get_weights()
    for v in model.weights:
        v.assign(tf.zeros_like(v.value))
    store.fetch()
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_load_if_changed(connect):
    model = mlp()
    store = make(connect(), model)
    assert not store.load_if_changed()
    model.layers[0].kernel.assign_add(tf.ones_like(model.layers[0].kernel.value))
    expected = model.layers[0].kernel.numpy()
    assert store.load_if_changed()
    model.layers[0].kernel.assign(tf.zeros_like(model.layers[0].kernel.value))
    store.fetch()
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), expected)
    assert not store.load_if_changed()


def test_a_value_that_is_no_number_is_no_change(connect):
    model = mlp()
    model.layers[0].bias.assign(np.full(16, np.nan))
    store = make(connect(), model)
    assert not store.load_if_changed()
    model.layers[0].bias.assign(np.zeros(16))
    assert store.load_if_changed()


def test_both_servers_hold_a_part(connect):
    store = make(connect(), mlp(units=64))
    held = [sum(b.nbytes for b in store.plan.buckets if b.ps == p) for p in (0, 1)]
    assert min(held) > 0
    assert sum(held) == 4 * sum(s.size for s in store.plan.specs)


def test_handles_are_arguments(connect):
    store = make(connect(), mlp())
    puller = Puller(store, None)
    pull = tf.function(lambda handles: puller.pull(handles), autograph=False)
    concrete = pull.get_concrete_function(store.handles())
    assert not concrete.captured_inputs
    doubled = []
    for bucket, stored in zip(store.plan.buckets, store.stored, strict=True):
        with tf.device(stored.value.device):
            doubled.append(tf.Variable(stored.value * 2.0 if bucket.size else stored.value))
    handles = store.handles()
    values = {i: v.handle for i, v in enumerate(doubled)}
    payloads = concrete(handles._replace(store=handles.store._replace(values=values))).payloads
    for i, b in enumerate(doubled):
        ((a,),) = payloads[i]
        np.testing.assert_array_equal(a, b)
