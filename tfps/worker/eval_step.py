"""What a worker runs to evaluate and to predict, with parameters that it holds."""

from typing import Any

import tensorflow as tf

from tfps.cluster.remote_function import RemoteFunction
from tfps.model.lookups import Rows
from tfps.model.row_ids import row_ids
from tfps.model.stateless_model import StatelessModel
from tfps.store.handles import ServerHandles
from tfps.store.pull import Pulled, Puller
from tfps.worker.batch_loop import is_iterator, repeat
from tfps.worker.own_values import Own, OwnValues
from tfps.worker.tally import Tally, added, vector, zeros
from tfps.worker.tracing import COUNT, form


class Pull:
    """Reads all buckets onto a worker, exactly, for the steps that only read."""

    def __init__(self, puller: Puller):
        """Traces the pull."""
        self._run = RemoteFunction(_exact_pull(puller), puller.store.handles())

    def __call__(self, handles: ServerHandles) -> Pulled:
        """Tensors on the device under which it is called."""
        return self._run(handles)


class EvalStep:
    """Up to `count` batches of evaluation on a worker, with parameters that it holds.

    Attributes:
      own: how the worker's own values go in and out.
    """

    def __init__(
        self,
        program: StatelessModel,
        puller: Puller,
        own: OwnValues,
        source: Any,
        single: bool,
        jit_compile: bool,
    ):
        """Traces the step.

        Args:
          program: the model.
          puller: the traffic down.
          own: how the worker's own values go in and out.
          source: the form of the input, as for `AsyncStep`.
          single: whether every call is for one batch.
          jit_compile: whether to compile the forward pass with XLA.
        """
        self._program = program
        self._puller = puller
        self._single = single
        self.own = own
        self._compute = tf.function(self._metrics, jit_compile=jit_compile, autograph=False)
        handles = puller.store.handles()
        pulled = form(_exact_pull(puller), handles)
        self._run = RemoteFunction(
            self._steps, handles, pulled, source, own.specs, numbers={"count": COUNT}
        )

    def __call__(
        self, handles: ServerHandles, pulled: Pulled, source: Any, own: Own, count: int
    ) -> tuple[tf.Tensor, Own]:
        """Evaluates up to `count` batches with what was pulled.

        Returns:
          (float64 vector, see `tally.Report`; own values for the next call).
        """
        return self._run(handles, pulled, source, own, count=count)

    def _metrics(self, pulled, rows, batch, metrics):
        variables = self._puller.unpack(pulled, rows, exact=True)
        n = len(self._program.trainable)
        return self._program.evaluate(variables[:n], variables[n:], metrics, batch)

    def _steps(self, handles, pulled, source, own, count):
        def step(i, batch, state):
            metrics, total = state
            rows = _rows(self._program, self._puller, handles, batch)
            metrics, examples = self._compute(pulled, rows, batch, metrics)
            return metrics, added(total, Tally(examples=examples))

        state = self.own.begin(own), zeros()
        done, (metrics, total) = repeat(step, source, count, state, self._single)
        return vector(done, total, self.own.reported(metrics)), self.own.end(metrics)


class PredictStep:
    """The model's outputs for one batch, with parameters that the worker holds.

    Attributes:
      own: how the worker's own values go in and out.
    """

    def __init__(
        self,
        program: StatelessModel,
        puller: Puller,
        own: OwnValues,
        source: Any,
        jit_compile: bool,
    ):
        """Traces the step; see `EvalStep` for the arguments."""
        n = len(program.trainable)
        self.own = own

        @tf.function(jit_compile=jit_compile, autograph=False)
        def compute(pulled, rows, values, batch):
            variables = puller.unpack(pulled, rows, exact=True)
            return program.predict(variables[:n], variables[n:], values, batch)

        def run(handles, pulled, source, own):
            batch = source.get_next() if is_iterator(source) else source
            rows = _rows(program, puller, handles, batch)
            outputs, values = compute(pulled, rows, self.own.begin(own), batch)
            return outputs, self.own.end(values)

        handles = puller.store.handles()
        pulled = form(_exact_pull(puller), handles)
        self._run = RemoteFunction(run, handles, pulled, source, own.specs)

    def __call__(
        self, handles: ServerHandles, pulled: Pulled, source: Any, own: Own
    ) -> tuple[Any, Own]:
        """Returns (the model's outputs, nested tensors on the worker; own values for the next)."""
        return self._run(handles, pulled, source, own)


def _exact_pull(puller: Puller):
    return lambda handles: puller.pull(handles, exact=True)


def _rows(program, puller, handles, batch) -> dict[int, Rows]:
    """The rows of tables that a batch looks up, exactly."""
    zero = tf.constant(0, tf.int64)
    lookups = row_ids(program, puller.tables, zero, batch, training=False)
    found = puller.rows(handles, lookups, tf.zeros([2], tf.int32), exact=True)
    return {i: one.rows for i, one in found.items()}
