"""What was made before a connection goes on after it."""

import itertools
import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests import warm
from tests.conftest import mlp, regression
from tfps import _tf_resources

_OTHER = itertools.cycle([(3, 1), (1, 3)])  # (workers, ps) of clusters of their own.


@pytest.fixture
def connected_anew(connect):
    """`connected_anew()`: connects to another cluster than before, and returns the strategy.

    The next test begins with that cluster, for each connection leaves threads behind.
    """
    if _tf_resources.connection() is None:
        connect()
    workers, ps = next(_OTHER)
    return lambda: connect(workers=workers, ps=ps)


def test_variables_are_read_and_assigned(connected_anew):
    variable, other = tf.Variable(1.0), tf.Variable([1, 2], dtype=tf.int64, name="other")
    traced = []

    @tf.function
    def assign(x):
        traced.append(1)
        variable.assign(x)
        other.assign_add([1, 1])
        return variable + 1.0

    assert assign(tf.constant(2.0)) == 3
    connected_anew()
    assert variable.numpy() == 2
    variable.assign(5.0)
    assert variable.numpy() == 5
    assert assign(tf.constant(7.0)) == 8 and variable.numpy() == 7
    variable.assign_add(1.0)
    assert variable.numpy() == 8
    assert other.numpy().tolist() == [3, 4] and other.name == "other:0"
    with tf.GradientTape() as tape:
        loss = variable * 2.0
    assert tape.gradient(loss, variable) == 2
    assert traced == [1]


def test_a_function_without_its_variables_follows_them(connected_anew):
    """A trace captures the handle of a variable, also in functions that it calls."""
    variable = tf.Variable(1.0)
    inner = tf.function(lambda: variable.read_value())
    outer = tf.function(lambda: tf.cond(variable > 0, lambda: inner() + 1.0, lambda: -1.0))
    gradient = tf.function(lambda x: tf.gradients(x * variable, [x])[0])
    assert outer() == 2 and gradient(tf.constant(1.0)) == 1
    connected_anew()
    variable.assign(4.0)
    assert outer() == 5 and gradient(tf.constant(1.0)) == 4
    variable.assign(-4.0)
    assert outer() == -1


def test_a_variable_without_a_value_is_left_alone(connected_anew):
    v = tf.Variable(tf.zeros([2]))
    handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[2], shared_name="no value")
    _tf_resources.set_handle(v, handle)
    connected_anew()
    assert _tf_resources.handle_of(v) is handle
    v.assign([1.0, 2.0])
    assert v.numpy().tolist() == [1, 2]


def test_random_generators_go_on(connected_anew):
    generators = [tf.random.Generator.from_seed(3) for _ in range(2)]
    seeds = [keras.random.SeedGenerator(3) for _ in range(2)]
    draw = tf.function(lambda: generators[1].normal([2]))
    first = generators[0].normal([2]), generators[0].normal([2]), generators[0].normal([2])
    noise = [keras.random.normal([2], seed=seeds[0]) for _ in range(2)]
    np.testing.assert_array_equal(draw(), first[0])
    np.testing.assert_array_equal(keras.random.normal([2], seed=seeds[1]), noise[0])
    connected_anew()
    np.testing.assert_array_equal(draw(), first[1])
    np.testing.assert_array_equal(generators[1].normal([2]), first[2])
    np.testing.assert_array_equal(keras.random.normal([2], seed=seeds[1]), noise[1])


def strings_to_numbers():
    return tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))


def mutable():
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(["a", "b"], tf.constant([1, 2], tf.int64))
    return table


def dense():
    table = tf.lookup.experimental.DenseHashTable(tf.string, tf.int64, -1, "", "-")
    table.insert(["a", "b"], tf.constant([1, 2], tf.int64))
    return table


TABLES = {
    "static": lambda: tf.lookup.StaticHashTable(strings_to_numbers(), -1),
    "anonymous": lambda: tf.lookup.StaticHashTable(
        strings_to_numbers(), -1, experimental_is_anonymous=True
    ),
    "vocabulary": lambda: tf.lookup.StaticVocabularyTable(strings_to_numbers(), 1),
    "mutable": mutable,
    "dense": dense,
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(connected_anew, kind):
    table = TABLES[kind]()
    look = tf.function(table.lookup)
    data = tf.data.Dataset.from_tensor_slices(["b", "a"]).map(table.lookup)
    begun = iter(data)
    assert look(tf.constant(["b"])) == [2] and next(begun) == 2
    connected_anew()
    assert table.lookup(tf.constant(["b", "a"])).numpy().tolist() == [2, 1]
    assert look(tf.constant(["b"])) == [2]
    assert next(begun) == 1
    assert [x.numpy() for x in data] == [2, 1]
    if kind in ("mutable", "dense"):
        table.insert(["c"], tf.constant([3], tf.int64))
        assert look(tf.constant(["c"])) == [3] and table.size() == 3


def test_a_table_that_was_not_filled_can_be_filled(connected_anew):
    values = tf.constant([1, 2], tf.int64)

    class Later(tf.lookup.KeyValueTensorInitializer):
        filled = False

        def initialize(self, table):
            return super().initialize(table) if self.filled else None

    later = Later(["a", "b"], values)
    table = tf.lookup.StaticHashTable(later, -1)
    connected_anew()
    later.filled = True
    later.initialize(table)
    assert table.lookup(tf.constant("b")) == 2


def test_a_loaded_table(connected_anew, tmp_path):
    module = tf.Module()
    module.table = TABLES["static"]()
    module.factor = tf.Variable(tf.constant(1, tf.int64))
    module.look = tf.function(
        lambda key: module.table.lookup(key) * module.factor,
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert loaded.look(tf.constant("b")) == 2
    connected_anew()
    loaded.factor.assign(10)
    assert loaded.look(tf.constant("b")) == 20


def adapted(layer, data):
    layer.adapt(data)
    return layer


LAYERS = {
    "StringLookup": (
        lambda: adapted(keras.layers.StringLookup(), np.array(["p", "q", "q"])),
        np.array(["q", "p", "?"]),
    ),
    "IntegerLookup": (
        lambda: keras.layers.IntegerLookup(vocabulary=[5, 7], output_mode="multi_hot"),
        np.array([[7, 5], [7, 9]]),
    ),
    "TextVectorization": (
        lambda: adapted(keras.layers.TextVectorization(), ["hello world", "hello"]),
        np.array(["world hello"]),
    ),
    "Normalization": (
        lambda: adapted(keras.layers.Normalization(), np.array([[1.0], [3.0]])),
        np.array([[2.0], [7.0]]),
    ),
    "Discretization": (
        lambda: adapted(keras.layers.Discretization(num_bins=2), np.arange(6.0)),
        np.array([1.0, 5.0]),
    ),
    "Hashing": (lambda: keras.layers.Hashing(num_bins=3), np.array(["x", "y"])),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_adapted_layers(connected_anew, kind):
    make, data = LAYERS[kind]
    layer = make()
    dataset = tf.data.Dataset.from_tensors(data).map(layer)
    before = np.asarray(layer(data))
    connected_anew()
    np.testing.assert_array_equal(np.asarray(layer(data)), before)
    np.testing.assert_array_equal(next(iter(dataset)), before)


def test_datasets_and_iterators_go_on(connected_anew):
    data = tf.data.Dataset.range(10).shuffle(10, seed=1, reshuffle_each_iteration=False).cache()
    data = data.interleave(lambda x: tf.data.Dataset.from_tensors(x)).batch(2).prefetch(1)
    whole = [x.numpy().tolist() for x in data]
    python = tf.data.Dataset.from_generator(
        lambda: iter(range(3)), output_signature=tf.TensorSpec([], tf.int32)
    )
    iterators = iter(data), iter(python)
    seen = [next(iterators[0]).numpy().tolist()]
    assert next(iterators[1]) == 0
    connected_anew()
    assert seen + [x.numpy().tolist() for x in iterators[0]] == whole
    assert [x.numpy() for x in iterators[1]] == [1, 2]
    assert [x.numpy().tolist() for x in data] == whole
    assert [x.numpy() for x in python] == [0, 1, 2]


def test_what_cannot_go_on_is_said(connected_anew, tmp_path):
    variable = tf.Variable(1.0)
    data = tf.data.Dataset.from_tensors(1.0).map(lambda x: x + variable)
    writer = tf.summary.create_file_writer(str(tmp_path))
    with pytest.warns(UserWarning) as caught:
        connected_anew()
    said = sorted(str(w.message) for w in caught)
    assert len(said) == 2
    assert said[0].startswith("1 function(s) of datasets made before")
    assert said[1].startswith("1 tf.summary writer(s) made before")
    assert next(iter(data)) == 2
    del writer


def test_a_program_that_made_nothing_of_that_kind_is_told_nothing(connected_anew):
    held = tf.Variable(1.0), tf.data.Dataset.range(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        connected_anew()
    del held


def test_a_model_of_plain_keras(connected_anew):
    x, y = regression(64)
    model, reference = mlp(), mlp()
    for m in (model, reference):
        m.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
        m.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    strategy = connected_anew()
    for m in (model, reference):
        m.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.evaluate(x, y, verbose=0) == reference.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), reference.predict(x, verbose=0))
    before = model.get_weights()
    tfps.Trainer(model, strategy).fit(x, y, verbose=0)
    assert not np.array_equal(model.get_weights()[0], before[0])


def test_variables_on_servers_end_with_the_connection(connect):
    with connect(workers=1).scope():
        remote = tf.Variable(1.0)
    connect(workers=3)  # Another cluster.
    connect(workers=1)  # It does not look at what it cannot find.
    del remote


def test_after_tensorflows_own_strategy_nothing_old_is_touched(connect):
    """TensorFlow's strategy connects without a word: what was made before may be gone."""
    spec = connect(workers=2).cluster.spec
    with connect(workers=1).scope():
        remote = tf.Variable(1.0)
    jobs = {job: spec[job] for job in ("worker", "ps")}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(jobs), rpc_layer="grpc"
    )
    with tf.distribute.ParameterServerStrategy(resolver).scope():
        also_remote = tf.Variable(1.0)
    connect(workers=1)
    connect(workers=3)  # Another cluster.
    held = tf.Variable(3.0)
    connect(workers=1)
    held.assign_add(1.0)
    assert held.numpy() == 4
    del remote, also_remote


# Code that asks for more devices after the first use of TensorFlow resets its context, as several
# of Keras's own tests do.
_RESET = """
import tensorflow as tf, tfps
from tensorflow.python.eager import context
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
with tf.device("CPU:1"):
    lost = tf.Variable(1.0)
context._reset_context()
held = tf.Variable(3.0)
with tfps.LocalCluster(1, 1) as cluster:
    tfps.ParameterServerStrategy(cluster)
    held.assign(4.0)
    print("held", held.numpy())
"""


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_a_variable_whose_device_ended_with_a_context_is_left_alone(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    done = warm.run(["-c", _RESET], root, os.environ, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "held 4.0" in done.stdout
