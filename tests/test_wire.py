import time

import numpy as np
import tensorflow as tf

from tfps.wire import after, token


def test_what_is_large_waits_for_what_is_small():
    """Also once TensorFlow has optimized the graph."""
    order = []

    def seen(name, value):
        def note(value):
            time.sleep(0.2 if name == "small" else 0)
            order.append(name)
            return value

        # Not stateful, or TensorFlow would put them in order by itself.
        noted = tf.numpy_function(note, [value], value.dtype, stateful=False)
        return tf.ensure_shape(noted, value.shape)

    @tf.function
    def run(small, large):
        small = seen("small", small)
        late = after({"matrix": large, "vector": large[0]}, token([small]))
        assert late["matrix"].shape == (3, 4) and late["vector"].shape == (4,)
        return small, seen("matrix", late["matrix"]), seen("vector", late["vector"])

    large = np.arange(12, dtype=np.float32).reshape(3, 4)
    spec = tf.TensorSpec([None], tf.float32)
    _, matrix, vector = run.get_concrete_function(spec, large)(tf.ones([2]), large)
    assert order[0] == "small" and set(order[1:]) == {"matrix", "vector"}
    np.testing.assert_array_equal(matrix, large)
    np.testing.assert_array_equal(vector, large[0])


def test_nothing_to_wait_for():
    tensors = {"a": tf.ones([3]), "b": tf.constant(2)}
    assert token([]) is None
    assert after(tensors, None) is tensors
    waited = after(tensors, token([tf.ones([0])]))
    assert waited["b"] is tensors["b"]
    np.testing.assert_array_equal(waited["a"], tensors["a"])
