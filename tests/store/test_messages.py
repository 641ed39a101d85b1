"""Small tensors that share a message."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tfps.store.messages import SMALL_BYTES, coalesce, join, separate

LARGE = np.arange(SMALL_BYTES, dtype=np.float32)
CASES = {
    "nothing": [],
    "one": [np.float32(1.5)],
    "of one dtype": [np.float32([1, 2, 3]), np.float32(4), np.zeros([2, 0], np.float32)],
    "of several": [
        np.float32([[1, -2]]), np.int64(2**40), np.bool_(True), np.float16(0.5), np.int8([-1, 3]),
        np.uint8(255), np.float64(0.1), np.zeros([0], np.int32), np.bool_([False, True]),
    ],
    "scalars of one dtype": [np.float32(1), np.float32(2)],
    "a large one between": [np.int32(7), LARGE, np.float32(3)],
    "text": [np.int32(7), np.array(b"text"), np.float32(3)],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_joined_comes_apart_again(name):
    arrays = CASES[name]
    counts = []

    @tf.function(autograph=False)
    def there_and_back(*tensors):
        messages, restore = coalesce(tensors)
        counts.append(len(messages))
        return restore([tf.identity(m) for m in messages])

    found = there_and_back(*[tf.constant(a) for a in arrays])
    for mine, array in zip(found, arrays, strict=True):
        assert mine.dtype == tf.as_dtype(array.dtype)
        np.testing.assert_array_equal(mine.numpy(), array)
    apart = [a for a in arrays if a.nbytes >= SMALL_BYTES or a.dtype.kind == "S"]
    kinds = {
        a.dtype if a.ndim else "scalars"
        for a in arrays
        if a.nbytes < SMALL_BYTES and a.dtype.kind != "S"
    }
    assert counts == [len(apart) + len(kinds)]


def test_what_has_no_known_shape_stays_by_itself():
    counts = []

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None]), tf.TensorSpec([])])
    def there_and_back(x, y):
        messages, restore = coalesce([x, y, y + 1])
        counts.append(len(messages))
        return restore(messages)

    found = there_and_back(tf.ones([3]), tf.constant(2.0))
    assert counts == [2]
    assert [t.numpy().tolist() for t in found] == [[1, 1, 1], 2, 3]


@pytest.mark.parametrize("traced", [False, True])
def test_what_is_joined_is_separated(traced):
    arrays = [
        np.arange(6, dtype=np.float32).reshape(3, 2),
        np.arange(4, dtype=np.int64),
        np.zeros([0, 5], np.float32),
        np.array(7, np.int8),
        np.arange(3, dtype=np.int64) - 9,
        np.array([True, False]),
        np.arange(2, dtype=np.int64),
    ]

    def there_and_back(*tensors):
        messages = join(tensors)
        assert len(messages) == 1 + len({t.dtype for t in tensors})
        return separate(messages, tensors)

    call = tf.function(there_and_back, autograph=False) if traced else there_and_back
    for mine, array in zip(call(*map(tf.constant, arrays)), arrays, strict=True):
        assert mine.dtype == tf.as_dtype(array.dtype)
        np.testing.assert_array_equal(mine, array)


def test_what_is_not_made_fewer_is_not_joined():
    tensors = [tf.ones([2]), tf.ones([3], tf.int64)]
    assert join(tensors)[0] is tensors[0] and separate(tensors, tensors)[1] is tensors[1]


def crossing(trainer):
    """(name, place) of what goes to another task in a step of training."""
    steps = trainer._session.steps._traced
    (step,) = [one for key, one in steps.items() if key[0] == "training"]

    def place(op):
        return re.search(r"job:(\w+)|$", op.device)[1] or "worker"

    return {
        (tensor.name, place(op))
        for op in step._run.graph.get_operations()
        for tensor in op.inputs
        if tensor.dtype != tf.resource
        and tensor.op.type not in ("Const", "Placeholder")
        and place(tensor.op) != place(op)
    }


@pytest.mark.parametrize("layer", ["fixed", "grows"])
def test_rows_of_many_tables_are_few_messages(connect, layer):
    """As many as with fewer tables; and the weights are those of plain Keras."""

    def compiled(tables):
        keras.utils.set_random_seed(1)
        ids = keras.Input([tables], dtype="int64")
        rows = []
        for k in range(tables):
            made = keras.layers.Embedding(20, 4, name=f"table{k}")
            if layer == "grows":
                made = tfps.layers.HashEmbedding(4, expected=20, name=f"table{k}", seed=k)
            rows.append(made(ids[:, k]))
        model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Concatenate()(rows)))
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        return model

    x = np.random.default_rng(0).integers(0, 20, [48, 5])
    y = x[:, :1] / 20.0
    args = {"batch_size": 16, "shuffle": False, "verbose": 0}
    counts = []
    for tables in (3, 5):
        model = compiled(tables)
        trainer = tfps.Trainer(model, connect(workers=1, ps=1), sparse_updates="lazy")
        trainer.fit(x[:, :tables], y, **args)
        counts.append(len(crossing(trainer)))
    assert counts[0] == counts[1]
    plain = compiled(5)
    plain.fit(x, y, **args)
    np.testing.assert_allclose(model.predict(x, verbose=0), plain.predict(x, verbose=0), rtol=1e-5)


def test_a_small_step_exchanges_five_tensors_with_a_ps(connect):
    """Parameters and their version; the push and what the ps is told with it; the receipt."""
    x, y = regression(40)
    model = mlp()
    model.compile(keras.optimizers.Adam(), "mse")
    trainer = tfps.Trainer(model, connect(workers=1, ps=1))
    trainer.fit(x, y, batch_size=20, verbose=0)
    assert len(crossing(trainer)) == 5, crossing(trainer)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_one_worker_computes_plain_keras_bit_by_bit(connect, policy):
    """What comes over the network must not make the model's operations round differently."""
    keras.config.set_dtype_policy(policy)
    x, y = regression(160)
    mine, theirs = mlp(), mlp()
    for model in (mine, theirs):
        model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    args = {"batch_size": 16, "shuffle": False, "verbose": 0}
    tfps.Trainer(mine, connect(workers=1, ps=2)).fit(x, y, **args)
    theirs.fit(x, y, **args)
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
