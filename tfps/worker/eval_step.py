"""What a worker runs to evaluate and to predict, with parameters that it holds."""

import tensorflow as tf

from tfps.model.row_ids import row_ids
from tfps.model.stateless_model import StatelessModel
from tfps.store.pull import Pulled, Puller
from tfps.worker.batch_loop import is_iterator, repeat
from tfps.worker.tally import Tally, added, vector, zeros


class EvalStep:
    """Up to `count` batches of evaluation on a worker, with weights that it holds.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(
        self, program: StatelessModel, puller: Puller, source, single: bool, jit_compile: bool
    ):
        """Traces the step; see `AsyncStep`."""
        self._program = program
        self._puller = puller
        self._single = single
        self.initial = program.initial_metrics()
        self._compute = tf.function(self._metrics, jit_compile=jit_compile, autograph=False)
        self._run = tf.function(self._steps, autograph=False).get_concrete_function(
            puller.store.handles(), _pulled_specs(puller), source, tf.TensorSpec([], tf.int32)
        )

    def __call__(self, handles, pulled, source, count: int) -> tf.Tensor:
        """Evaluates up to `count` batches with what was pulled; returns a `Report`'s vector."""
        return self._run(handles, pulled, source, tf.constant(count, tf.int32))

    def _metrics(self, pulled, rows, batch, metrics):
        variables = self._puller.unpack(pulled, rows, exact=True)
        n = len(self._program.trainable)
        return self._program.evaluate(variables[:n], variables[n:], metrics, batch)

    def _steps(self, handles, pulled, source, count):
        def step(i, batch, state):
            metrics, tally = state
            rows = _rows(self._program, self._puller, handles, batch)
            metrics, examples = self._compute(pulled, rows, batch, metrics)
            return metrics, added(tally, Tally(examples=examples))

        state = self.initial, zeros()
        done, (metrics, tally) = repeat(step, source, count, state, self._single)
        return vector(done, tally, metrics)


class PredictStep:
    """The outputs for one batch, with weights that the worker holds."""

    def __init__(self, program: StatelessModel, puller: Puller, source, jit_compile: bool):
        """Traces the step; see `AsyncStep`."""
        n = len(program.trainable)

        @tf.function(jit_compile=jit_compile, autograph=False)
        def compute(pulled, rows, batch):
            variables = puller.unpack(pulled, rows, exact=True)
            return program.predict(variables[:n], variables[n:], batch)

        def run(handles, pulled, source):
            batch = source.get_next() if is_iterator(source) else source
            return compute(pulled, _rows(program, puller, handles, batch), batch)

        self._run = tf.function(run, autograph=False).get_concrete_function(
            puller.store.handles(), _pulled_specs(puller), source
        )

    def __call__(self, handles, pulled, source):
        """The model's outputs, as tensors on the worker."""
        return self._run(handles, pulled, source)


class Pull:
    """Reads all buckets onto a worker, for the steps that only read."""

    def __init__(self, puller: Puller):
        self._run = _exact_pull(puller)

    def __call__(self, handles) -> Pulled:
        """Tensors on the device under which it is called."""
        return self._run(handles)


def _rows(program, puller, handles, batch) -> dict:
    zero = tf.constant(0, tf.int64)
    lookups = row_ids(program, puller.tables, zero, batch, training=False)
    found = puller.rows(handles, lookups, tf.zeros([2], tf.int32), exact=True)
    return {i: one.rows for i, one in found.items()}


def _exact_pull(puller: Puller):
    pull = tf.function(lambda handles: puller.pull(handles, exact=True), autograph=False)
    return pull.get_concrete_function(puller.store.handles())


def _pulled_specs(puller: Puller):
    return specs(_exact_pull(puller))


def specs(function):
    """The specs of what a concrete function returns."""
    return tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype), function.structured_outputs
    )
