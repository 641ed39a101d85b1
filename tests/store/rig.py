"""A small store with every kind of variable, and pushes to it, without training a model."""

import keras
import numpy as np
import tensorflow as tf

from tfps.cluster.devices import worker_device
from tfps.model.inspection import Inspection
from tfps.model.stateless_model import StatelessModel
from tfps.store.actors import Actors
from tfps.store.aggregation import Aggregation, Applied
from tfps.store.bucket_update import CompiledOptimizer
from tfps.store.parameter_store import ParameterStore
from tfps.store.plan import Plan
from tfps.store.push import Push, Pusher
from tfps.store.tables import Ids

TABLE_ROWS = 11


class Everything(keras.Model):
    """A table, a matrix and a bias that are trained; an average, a counter and a frozen matrix."""

    def build(self, shape):
        def add(name, shape, **kwargs):
            return self.add_weight(name=name, shape=shape, initializer="uniform", **kwargs)

        self.table = add("table", (TABLE_ROWS, 2))
        self.kernel = add("kernel", (7, 3))
        self.bias = add("bias", (3,))
        self.unused = add("unused", (4, 2))
        self.average = add("average", (5,), trainable=False)
        self.counter = self.add_weight(
            name="counter", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.frozen = add("frozen", (2, 2), trainable=False)


class Rig:
    """A store on the servers of a strategy.

    Attributes:
      store: with the variables.
      pusher: the traffic up.
    """

    def __init__(
        self, strategy, optimizer, lazy=False, bucket_bytes=1 << 20, seed=1,
        aggregation=lambda store: Applied(CompiledOptimizer(store, False)),
    ):  # fmt: skip
        keras.utils.set_random_seed(seed)
        model = Everything()
        model.build(None)
        model.compile(optimizer, "mse")
        program = StatelessModel(model)
        inspection = Inspection(
            [True, True, True, False], [True, True, False], [True, False, False, False]
        )
        plan = Plan(
            strategy.cluster.num_ps,
            strategy.variable_partitioner,
            program,
            model.optimizer,
            inspection,
            lazy=lazy,
            bucket_bytes=bucket_bytes,
        )
        self.store = ParameterStore(plan, model.optimizer)
        self.aggregation: Aggregation = aggregation(self.store)
        self.pusher = Pusher(self.store, self.aggregation)
        self._actors: Actors | None = None
        self._failures: list[BaseException] = []
        self._push = tf.function(self._pushed, autograph=False, jit_compile=False)

    def push(self, seed, live=True, finite=True, expected=1):
        """Pushes random updates; returns the receipt."""
        rng = np.random.default_rng(seed)
        specs = self.store.plan.specs
        ids = rng.permutation(TABLE_ROWS)[:4]
        by_rows = self.aggregation.optimizer.by_rows
        gradients = [rng.normal(size=s.shape).astype(np.float32) for s in specs[:4]]
        gradients[0] = gradients[0][:4] if by_rows else gradients[0]
        state = [rng.normal(size=5).astype(np.float32), np.int32(3)]
        given = ids, gradients[:3], state, live, finite, np.int32(expected)
        if self._actors is None:
            self._push.get_concrete_function(self.pusher.handles(), *given)
            self._actors = Actors(self.pusher)
        self._actors.start([0], self._failures.append)
        try:
            with tf.device(worker_device(0)):
                return self._push(self._actors.handles(0, 0), *given)
        finally:
            self._actors.stop()
            assert not self._failures

    def _pushed(self, handles, ids, gradients, state, live, finite, expected):
        old = [tf.zeros([5]), tf.zeros([], tf.int32), tf.zeros([2, 2])]
        updates = self.pusher.pack_updates([*gradients, None], old, [*state, None])
        payloads, rows, _ = self.pusher.encode(
            updates,
            {0: Ids.of([ids])},
            self.pusher.initial_residuals(),
            tf.zeros([2], tf.int32),
            tf.constant(True),
        )
        versions = tf.zeros([self.store.plan.num_ps], tf.int64)
        unit = tf.constant(0, tf.int64)
        sent = Push(payloads, rows, versions, unit, live, finite, tf.constant(8.0))
        return self.pusher.push(handles, sent, tf.constant(0.1), expected)


def flat(state) -> dict:
    """Path in a nested structure -> the bytes of the array there."""
    found = {}

    def walk(path, one):
        if hasattr(one, "_asdict"):
            one = one._asdict()
        if isinstance(one, dict):
            for key, value in one.items():
                walk((*path, key), value)
        elif one is not None and not isinstance(one, str):
            array = np.asarray(one)
            found[path] = array.dtype.name, array.shape, array.tobytes()

    walk((), state)
    return found
