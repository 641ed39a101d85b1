"""Steps that run op by op, for debugging: the user's code sees tensors that have `numpy()`.

The chief computes; only what pulls and what pushes runs as a graph. One step runs at a time, so
that two workers' breakpoints do not speak at once. So all workers update one state of the metrics,
whatever a metric does, as in one process.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfps import _tf
from tfps.cluster.remote_function import RemoteFunction
from tfps.model.stateless_model import StatelessModel
from tfps.store.handles import ServerHandles
from tfps.store.pull import Pulled, Puller
from tfps.worker.async_step import AsyncCarry, AsyncStep
from tfps.worker.batch_loop import Stack, is_iterator
from tfps.worker.gradient import Gradient, encoded
from tfps.worker.own_values import Own, OwnValues
from tfps.worker.sync_step import SyncCarry, SyncStep
from tfps.worker.tally import Tally, added, zeros
from tfps.worker.tracing import RATE, REPEATS, STEP_NUMBER, form

_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _on_chief() -> Iterator[None]:
    """A context in which operations run in this process, while no other step does."""
    # Each part of a device's name that is left out would be the worker's.
    device = f"{_tf.chief_device()}/replica:0/task:0/device:CPU:0"
    with _ONE_AT_A_TIME, tf.device(device):
        yield


def _batches(source: Any, count: int) -> Iterator[Any]:
    """Up to `count` batches of a source."""
    for i in range(count):
        if isinstance(source, Stack):
            yield tf.nest.map_structure(lambda t, i=i: None if t is None else t[i], source.batches)
        elif is_iterator(source):
            element = source.get_next_as_optional()
            if not element.has_value():
                return
            yield element.get_value()
        else:
            yield source


def _begun(own: Own, values: list[Any]) -> list[Any]:
    """A step's values, with the metrics as the last step of any worker has left them."""
    return [*own.metrics, *values[len(own.metrics) :]]


def _ended(own: Own, values: list[Any]) -> list[Any]:
    """Leaves the metrics to the next step of any worker; returns the values."""
    own.metrics[:] = values[: len(own.metrics)]
    return values


class EagerStep(AsyncStep):
    """What an `AsyncStep` does, with the user's code op by op; a `WorkerStep`."""

    def __init__(self, gradient: Gradient, own: OwnValues, batch_spec: Any):
        """Traces the pull and the push.

        Args:
          gradient: pull, compute, push; of a model that runs eagerly.
          own: how the worker's own values go in and out.
          batch_spec: nested specs of a batch.
        """
        super().__init__(gradient, own, batch_spec, single=True)

    def _trace(self, source: Any) -> None:
        gradient, pusher = self._gradient, self._gradient.pusher
        handles = pusher.handles()
        numbers = {"number": STEP_NUMBER}
        copies = gradient.puller.copy_specs()
        self._pull = RemoteFunction(gradient.pull, handles, source, copies, numbers=numbers)
        residuals = form(pusher.initial_residuals)
        sent, _ = form(
            lambda *arguments: encoded(pusher, *arguments),
            gradient.change_specs(), residuals, STEP_NUMBER,
        )  # fmt: skip
        numbers = {"learning_rate": RATE, "repeats": REPEATS}
        self._push = RemoteFunction(gradient.push, handles, sent, numbers=numbers)

    def __call__(
        self,
        handles: ServerHandles,
        source: Any,
        carry: AsyncCarry,
        own: Own,
        count: int,
        number: int,
        learning_rate: float,
        repeats: int = 0,
    ) -> tuple[tf.Tensor, AsyncCarry, Own]:
        """See `WorkerStep`."""
        done, metrics, total = 0, self.own.begin(own), zeros()
        for batch in _batches(source, count):
            parameters = self._pull(handles, batch, carry.copies, number=number + done)
            copies = self._gradient.puller.copies(parameters.pulled)
            with _on_chief():
                index, metrics = tf.constant(number + done, tf.int64), _begun(own, metrics)
                computed = self._gradient.compute(
                    batch, parameters, carry.residuals, metrics, index
                )
                metrics = _ended(own, computed.metrics)
            carry = AsyncCarry(computed.residuals, copies)
            pushed = self._push(
                handles, computed.sent, learning_rate=learning_rate, repeats=repeats
            )
            total = added(total, computed.tally, pushed)
            done += 1
        report = self.own.report(own, tf.constant(done), total, metrics)
        return report, carry, self.own.end(metrics)._replace(metrics=own.metrics)


class EagerSyncStep(SyncStep):
    """What a `SyncStep` does, with the user's code op by op; a `RoundStep`."""

    def __init__(self, gradient: Gradient, own: OwnValues, batch_spec: Any):
        """Traces the pull and the push; see `EagerStep` for the arguments."""
        super().__init__(gradient, own, batch_spec)

    def _trace(self, handles, source, carry) -> None:
        numbers = {"number": STEP_NUMBER}
        self._pull = RemoteFunction(
            self._gradient.pull, handles, source, carry.copies, numbers=numbers
        )

    def __call__(
        self,
        handles: ServerHandles,
        source: Any,
        carry: SyncCarry,
        own: Own,
        count: int,
        number: int,
        learning_rate: float,
    ) -> tuple[tf.Tensor, SyncCarry, Own]:
        """Pulls and computes; see `WorkerStep`."""
        del learning_rate
        done, change, copies = 0, carry.change, carry.copies
        metrics, total = self.own.begin(own), zeros()
        for batch in _batches(source, min(count, 1)):
            parameters = self._pull(handles, batch, copies, number=number)
            copies = self._gradient.puller.copies(parameters.pulled)
            with _on_chief():
                change, metrics, tally = self._gradient.change(
                    batch, parameters, _begun(own, metrics), tf.constant(number, tf.int64)
                )
                _ended(own, metrics)
            done, total = 1, added(total, tally)
        report = self.own.report(own, tf.constant(done), total, metrics)
        own = self.own.end(metrics)._replace(metrics=own.metrics)
        return report, SyncCarry(carry.residuals, copies, change), own


class _EagerForward:
    """A forward pass op by op, with parameters that the worker holds.

    Attributes:
      own: how the worker's own values go in and out.
    """

    def __init__(self, program: StatelessModel, puller: Puller, own: OwnValues):
        """Traces nothing; see `EvalStep` for the arguments."""
        self._program, self._puller, self.own = program, puller, own

    def _variables(self, pulled: Pulled) -> tuple[list, list]:
        """Returns the values of trained variables, and of the others."""
        variables = self._puller.unpack(pulled, {}, exact=True)
        n = len(self._program.trainable)
        return variables[:n], variables[n:]


class EagerEvalStep(_EagerForward):
    """What an `EvalStep` does, op by op."""

    def __call__(
        self, handles: ServerHandles, pulled: Pulled, source: Any, own: Own, count: int, number: int
    ) -> tuple[tf.Tensor, Own]:
        """See `EvalStep`."""
        del handles
        done, metrics, total, program = 0, self.own.begin(own), zeros(), self._program
        for batch in _batches(source, count):
            with _on_chief():
                trainable, state = self._variables(pulled)
                index = tf.constant(number + done, tf.int64)
                metrics, examples = program.evaluate(
                    trainable, state, _begun(own, metrics), index, batch, self.own.logs
                )
                _ended(own, metrics)
                total = added(total, Tally(examples=examples))
            done += 1
        report = self.own.report(own, tf.constant(done), total, metrics)
        return report, self.own.end(metrics)._replace(metrics=own.metrics)


class EagerPredictStep(_EagerForward):
    """What a `PredictStep` does, op by op."""

    def __call__(
        self, handles: ServerHandles, pulled: Pulled, source: Any, own: Own, number: int
    ) -> tuple[Any, Own]:
        """See `PredictStep`."""
        del handles
        batch = next(_batches(source, 1))
        with _on_chief():
            trainable, state = self._variables(pulled)
            index = tf.constant(number, tf.int64)
            outputs, values = self._program.predict(
                trainable, state, self.own.begin(own), index, batch
            )
        return outputs, self.own.end(values)
