"""What a step computes, timed in this process: gradients on a worker, an update on a ps."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps.model.optimizer_set import AnyOptimizer
from tfps.model.server_optimizer import ServerOptimizer
from tfps.model.step_devices import StepDevices
from tfps.profiling.clock import Timing, timed
from tfps.store.parameter_store import ParameterStore
from tfps.store.pull import Puller
from tfps.store.push import Pusher
from tfps.worker.gradient import Gradient


class Computing(NamedTuple):
    """What the gradients of a batch take.

    Attributes:
      timing: of the forward and the backward pass.
      rows: table -> how many of its rows the batch looks up.
    """

    timing: Timing
    rows: dict[int, int]


def gradients(
    puller: Puller,
    pusher: Pusher,
    optimizer: AnyOptimizer,
    program: Any,
    batch: Any,
    seconds: float,
) -> Computing:
    """Times the gradients of a batch on this process's own device.

    Args:
      puller, pusher: of a model that is on the servers.
      optimizer: of the model.
      program: the `StatelessModel`.
      batch: what the dataset yields.
      seconds: to spend.
    """
    devices = program.devices
    # A worker's devices are not this process's.
    program.devices = StepDevices(program.model, program.seed_ids, None, {}, compiles=False)
    try:
        gradient = Gradient(program, puller, pusher, optimizer, bool(program.model.jit_compile))
        handles, number = pusher.server_handles(), tf.constant(0, tf.int64)

        @tf.function(autograph=False)
        def pulled(batch):
            return gradient.pull(handles, batch, {}, number)

        metrics = [*program.initial_metrics(program.logs)]
        metrics += [tf.convert_to_tensor(v.value) for v in program.unlisted]

        @tf.function(autograph=False)
        def computed(batch, parameters):
            change, after, _ = gradient.change(batch, parameters, metrics, number)
            return [*tf.nest.flatten((change.buckets, change.rows)), *after]

        parameters = pulled(batch)
        rows = {i: int(tf.size(one.ids.unique)) for i, one in parameters.found.items()}
        return Computing(timed(lambda: computed(batch, parameters), seconds), rows)
    finally:
        program.devices = devices


def update(store: ParameterStore, optimizer: AnyOptimizer, jit: bool, seconds: float) -> float:
    """Seconds per byte of values in which the optimizer updates the buckets of a ps.

    Args:
      store: of the model, on one ps.
      optimizer: of the model.
      jit: whether XLA compiles the update.
      seconds: to spend.
    """
    mine = [i for trained in store.trained for i in trained]
    size = sum(store.plan.buckets[i].nbytes for i in mine)
    if not size:
        return 0.0
    kinds = [store.plan.buckets[i].kind for i in mine]
    with tf.device("CPU:0"):
        variables = [type(store.stored[i])(tf.zeros(store.plan.buckets[i].shape)) for i in mine]
        own = ServerOptimizer(
            optimizer,
            variables,
            [kind.decayed for kind in kinds],
            [kind.owner for kind in kinds],
            [kind.calls for kind in kinds],
        )
        given = [tf.fill(v.shape, tf.cast(1e-3, v.dtype)) for v in variables]

        @tf.function(jit_compile=jit, autograph=False)
        def applied(values, state, gradients):
            return own.apply(values, state, gradients, tf.constant(1e-3))

        @tf.function(autograph=False)
        def step():
            values, state = applied(
                [v.value for v in variables], [v.value for v in own.state], given
            )
            for variable, value in zip([*variables, *own.state], [*values, *state], strict=True):
                variable.value.assign(value)
            return tf.constant(0)

        return timed(step, seconds).seconds / size


def add(seconds: float, size: int = 4 << 20) -> float:
    """Seconds per byte in which a push is added to the sum of a round."""
    with tf.device("CPU:0"):
        total, pushed = tf.Variable(tf.zeros([size // 4])), tf.ones([size // 4])

        @tf.function(autograph=False)
        def step():
            total.assign_add(pushed)
            return tf.constant(0)

        return timed(step, seconds).seconds / size
