"""What a worker runs: steps of training, evaluation and prediction.

Read `TrainStep._step` first: it is the whole of parameter-server training, in
the order in which the data flows. Each class traces its function once for a
form of input; the same concrete function then runs on every worker.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps import optimizers
from tfps.program import Program
from tfps.store import ParameterStore


class Stack(NamedTuple):
    """Several batches in one: every tensor has them along a new first axis."""

    batches: Any


class TrainStep:
    """Up to `count` training steps on a worker in one call.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(
        self,
        program: Program,
        store: ParameterStore,
        optimizer,
        source,
        single: bool,
        jit_compile: bool,
    ):
        """Traces the step.

        Args:
          program: the model.
          store: where its variables live.
          optimizer: the one that the model was compiled with.
          source: the form of the input: an iterator, the specs of one batch, or
            a `Stack` of specs.
          single: every call is for one step.
          jit_compile: compile the forward and backward pass with XLA.
        """
        self._program = program
        self._store = store
        self._optimizer = optimizer
        self._single = single
        self.initial = program.initial_metrics()
        self._compute = tf.function(self._gradients, jit_compile=jit_compile, autograph=False)
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        self._run = tf.function(self._steps, autograph=False).get_concrete_function(
            store.handles(), source, int32, int64, float32
        )

    def __call__(self, handles, source, count: int, first: int, learning_rate: float) -> tf.Tensor:
        """Trains on up to `count` batches; to be called under a worker's device.

        Args:
          handles: of the store.
          source: an iterator, which may end early, one batch, or a `Stack`.
          count: steps to do at most.
          first: number of the first step; no other step has the same.
          learning_rate: for the optimizer, unless it follows a schedule.

        Returns:
          float64 vector, see `Report`.
        """
        return self._run(
            handles,
            source,
            tf.constant(count, tf.int32),
            tf.constant(first, tf.int64),
            tf.constant(learning_rate, tf.float32),
        )

    def _step(self, handles, batch, metrics, number, learning_rate):
        scale = self._store.pull_loss_scale(handles)
        values = self._store.pull(handles)  # ps -> worker
        updates, metrics, examples, finite = self._compute(values, batch, metrics, number, scale)
        self._store.push(handles, updates, learning_rate, finite, scale)  # worker -> ps
        return metrics, examples

    def _gradients(self, values, batch, metrics, number, scale):
        variables = self._store.unpack(values)
        n = len(self._program.trainable)
        trainable, state = variables[:n], variables[n:]
        gradients, new_state, metrics, examples = self._program.train(
            trainable, state, metrics, number, scale, batch
        )
        gradients, finite = optimizers.prepare(self._optimizer, gradients, scale)
        return self._store.pack_updates(gradients, state, new_state), metrics, examples, finite

    def _steps(self, handles, source, count, first, learning_rate):
        def step(i, batch, metrics):
            number = first + tf.cast(i, tf.int64)
            return self._step(handles, batch, metrics, number, learning_rate)

        return _report(*_repeat(step, source, count, self.initial, self._single))


class EvaluateStep:
    """Up to `count` batches of evaluation on a worker, with weights that it holds.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(
        self, program: Program, store: ParameterStore, source, single: bool, jit_compile: bool
    ):
        """Traces the step; see `TrainStep`."""
        self._program = program
        self._store = store
        self._single = single
        self.initial = program.initial_metrics()
        self._compute = tf.function(self._metrics, jit_compile=jit_compile, autograph=False)
        self._run = tf.function(self._steps, autograph=False).get_concrete_function(
            _value_specs(store), source, tf.TensorSpec([], tf.int32)
        )

    def __call__(self, values, source, count: int) -> tf.Tensor:
        """Evaluates up to `count` batches with pulled `values`; returns a `Report`'s vector."""
        return self._run(values, source, tf.constant(count, tf.int32))

    def _metrics(self, values, batch, metrics):
        variables = self._store.unpack(values)
        n = len(self._program.trainable)
        return self._program.evaluate(variables[:n], variables[n:], metrics, batch)

    def _steps(self, values, source, count):
        def step(i, batch, metrics):
            return self._compute(values, batch, metrics)

        return _report(*_repeat(step, source, count, self.initial, self._single))


class PredictStep:
    """The outputs for one batch, with weights that the worker holds."""

    def __init__(self, program: Program, store: ParameterStore, source, jit_compile: bool):
        """Traces the step; see `TrainStep`."""
        n = len(program.trainable)

        @tf.function(jit_compile=jit_compile, autograph=False)
        def compute(values, batch):
            variables = store.unpack(values)
            return program.predict(variables[:n], variables[n:], batch)

        def run(values, source):
            batch = source.get_next() if _is_iterator(source) else source
            return compute(values, batch)

        self._run = tf.function(run, autograph=False).get_concrete_function(
            _value_specs(store), source
        )

    def __call__(self, values, source):
        """The model's outputs, as tensors on the worker."""
        return self._run(values, source)


class Pull:
    """Reads all buckets onto a worker, for the steps that only read."""

    def __init__(self, store: ParameterStore):
        self._run = tf.function(store.pull, autograph=False).get_concrete_function(store.handles())

    def __call__(self, handles) -> list[tf.Tensor]:
        """Tensors on the device under which it is called."""
        return self._run(handles)


class Report(NamedTuple):
    """What a call of `TrainStep` or `EvaluateStep` did.

    Attributes:
      steps: int, steps done.
      examples: int, examples in them.
      metrics: arrays, the change of each metric variable.
    """

    steps: int
    examples: int
    metrics: list[np.ndarray]

    @classmethod
    def of(cls, run: Callable[[], tf.Tensor], initial: list[tf.Tensor]) -> "Report":
        """Calls a step and reads the float64 vector that it returns."""
        vector = run().numpy()
        metrics, offset = [], 2
        for start in initial:
            size = math.prod(start.shape)
            value = vector[offset : offset + size].reshape(start.shape)
            metrics.append(value - start.numpy().astype(np.float64))
            offset += size
        return cls(int(vector[0]), int(vector[1]), metrics)


def _repeat(step, source, count, metrics, single):
    """Runs `step(i, batch, metrics) -> (metrics, examples)` over a source.

    Args:
      step: traced once.
      source: an iterator, one batch, or a `Stack`.
      count: int32 scalar, steps to do at most.
      metrics: initial values.
      single: the count is always 1: no loop is needed.

    Returns:
      (steps done, examples seen, metrics).
    """
    zero = tf.constant(0, tf.int64)
    if isinstance(source, Stack):

        def body(i, examples, metrics):
            batch = tf.nest.map_structure(lambda t: t[i], source.batches)
            metrics, seen = step(i, batch, metrics)
            return i + 1, examples + seen, metrics

        return tf.while_loop(
            lambda i, *_: i < count, body, [tf.constant(0), zero, metrics], parallel_iterations=1
        )
    if not _is_iterator(source):
        metrics, seen = step(tf.constant(0), source, metrics)
        return tf.constant(1), seen, metrics
    # The end of an iterator is asked for, not run into: an error of one worker's
    # call can end what other workers are doing on the same servers.
    if single:
        element = source.get_next_as_optional()

        def once():
            after, seen = step(tf.constant(0), element.get_value(), metrics)
            return tf.constant(1), seen, after

        return tf.cond(element.has_value(), once, lambda: (tf.constant(0), zero, metrics))

    def more(i, examples, metrics, element):
        return tf.logical_and(i < count, element.has_value())

    def body(i, examples, metrics, element):
        metrics, seen = step(i, element.get_value(), metrics)
        # The element after the last step is left for the next call.
        element = tf.cond(i + 1 < count, source.get_next_as_optional, lambda: element)
        return i + 1, examples + seen, metrics, element

    first = source.get_next_as_optional()
    done, examples, metrics, _ = tf.while_loop(
        more, body, [tf.constant(0), zero, metrics, first], parallel_iterations=1
    )
    return done, examples, metrics


def _report(steps, examples, metrics) -> tf.Tensor:
    # One vector, because every tensor that the chief fetches is a round trip.
    # float64 holds the float32 and int32 states of metrics exactly.
    parts = [tf.cast(steps, tf.float64)[None], tf.cast(examples, tf.float64)[None]]
    parts += [tf.reshape(tf.cast(m, tf.float64), [-1]) for m in metrics]
    return tf.concat(parts, 0)


def _is_iterator(source) -> bool:
    return isinstance(source, tf.data.Iterator)


def _value_specs(store: ParameterStore) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(b.shape, b.dtype) for b in store.buckets]
