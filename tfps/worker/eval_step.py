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
from tfps.worker.tally import Tally, added, zeros
from tfps.worker.tracing import COUNT, STEP_NUMBER, form


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
        self._compute = program.devices.graph(self._metrics, jit_compile)
        handles = puller.store.handles()
        pulled = form(_exact_pull(puller), handles)
        numbers = {"count": COUNT, "first": STEP_NUMBER}
        self._run = RemoteFunction(self._steps, handles, pulled, source, own.specs, numbers=numbers)

    def __call__(
        self, handles: ServerHandles, pulled: Pulled, source: Any, own: Own, count: int, number: int
    ) -> tuple[tf.Tensor, Own]:
        """Evaluates up to `count` batches with what was pulled.

        The batches have the numbers from `number` on, from which the noise of layers is drawn.

        Returns:
          (float64 vector, see `tally.Report`; own values for the next call).
        """
        return self._run(handles, pulled, source, own, count=count, first=number)

    def _metrics(self, pulled, rows, batch, metrics, number):
        variables = self._puller.unpack(pulled, rows, exact=True)
        n = len(self._program.trainable)
        with self._program.devices.computing():
            return self._program.evaluate(
                variables[:n], variables[n:], metrics, number, batch, self.own.logs
            )

    def _steps(self, handles, pulled, source, own, count, first):
        def step(i, batch, state):
            metrics, total = state
            number = first + tf.cast(i, tf.int64)
            rows = _rows(self._program, self._puller, handles, batch, number, "test")
            metrics, examples = self._compute(pulled, rows, batch, metrics, number)
            return metrics, added(total, Tally(examples=examples))

        state = self.own.begin(own), zeros()
        done, (metrics, total) = repeat(step, source, count, state, self._single)
        return self.own.report(own, done, total, metrics), self.own.end(metrics)


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

        def computed(pulled, rows, values, batch, number):
            variables = puller.unpack(pulled, rows, exact=True)
            with program.devices.computing():
                return program.predict(variables[:n], variables[n:], values, number, batch)

        compute = program.devices.graph(computed, jit_compile)

        def run(handles, pulled, source, own, number):
            batch = source.get_next() if is_iterator(source) else source
            rows = _rows(program, puller, handles, batch, number, "predict")
            outputs, values = compute(pulled, rows, self.own.begin(own), batch, number)
            return outputs, self.own.end(values)

        handles = puller.store.handles()
        pulled = form(_exact_pull(puller), handles)
        numbers = {"number": STEP_NUMBER}
        self._run = RemoteFunction(run, handles, pulled, source, own.specs, numbers=numbers)

    def __call__(
        self, handles: ServerHandles, pulled: Pulled, source: Any, own: Own, number: int
    ) -> tuple[Any, Own]:
        """Computes the batch of this number.

        Returns:
          (the model's outputs, nested tensors on the worker; own values for the next call).
        """
        return self._run(handles, pulled, source, own, number=number)


def _exact_pull(puller: Puller):
    return lambda handles: puller.pull(handles, exact=True)


def _rows(program, puller, handles, batch, number, mode) -> dict[int, Rows]:
    """The rows of tables that a batch looks up, exactly."""
    lookups = row_ids(program, puller.tables, number, batch, mode)
    found = puller.rows(handles, lookups, tf.zeros([2], tf.int32), exact=True)
    return {i: one.rows for i, one in found.items()}
