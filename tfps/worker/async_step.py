"""What a worker runs to train by itself, asynchronously.

Read `AsyncStep._step` first: it is the whole of parameter-server training, in the order in which
the data flows. The step is traced once for a form of input. The same graph then runs on every
worker. A worker that pulls or pushes while it computes runs a `PrefetchStep` or an `OverlappedStep`
instead.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps.cluster.remote_function import RemoteFunction
from tfps.store.handles import ServerHandles
from tfps.store.pull import Copies
from tfps.worker.batch_loop import repeat
from tfps.worker.gradient import Gradient
from tfps.worker.own_values import Own, OwnValues
from tfps.worker.tally import added, zeros
from tfps.worker.tracing import REPEATABLE_NUMBERS, form
from tfps.worker.worker_step import Residuals, WorkerMemory, kept


class AsyncCarry(NamedTuple):
    """What a worker keeps from one call to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      copies: what the worker holds of buckets that are pulled as differences.
    """

    residuals: Residuals
    copies: Copies


class AsyncStep:
    """Up to `count` training steps in one call, one after the other; a `WorkerStep`."""

    prefetches = False

    def __init__(self, gradient: Gradient, own: OwnValues, source: Any, single: bool):
        """Traces the step.

        Args:
          gradient: pull, compute, push.
          own: how the worker's own values go in and out.
          source: the form of the input: an iterator, the specs of one batch, or a `Stack` of specs.
          single: whether every call is for one step.
        """
        self._gradient = gradient
        self._single = single
        self.own = own
        self._trace(source)

    def _trace(self, source: Any) -> None:
        pusher = self._gradient.pusher
        copies = self._gradient.puller.copy_specs()
        carry = AsyncCarry(form(pusher.initial_residuals), copies)
        self._run = RemoteFunction(
            self._steps, pusher.handles(), source, carry, self.own.specs, numbers=REPEATABLE_NUMBERS
        )

    def start(self, handles: ServerHandles, memory: WorkerMemory | None) -> AsyncCarry:
        """See `WorkerStep`."""
        residuals = kept(memory, self._gradient.pusher.initial_residuals())
        return AsyncCarry(residuals, self._gradient.puller.begin(handles))

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
        """See `RepeatableStep`."""
        return self._run(
            handles,
            source,
            carry,
            own,
            count=count,
            first=number,
            learning_rate=learning_rate,
            repeats=repeats,
        )

    def finish(self, handles: ServerHandles, carry: AsyncCarry, learning_rate: float) -> None:
        """See `WorkerStep`; every call has pushed what it computed."""

    def rest(self, carry: AsyncCarry) -> WorkerMemory:
        """See `WorkerStep`."""
        return WorkerMemory(carry.residuals, [])

    def _step(self, handles, batch, carry, metrics, number, learning_rate, repeats):
        """One step.

        Args:
          handles: of all that is on the servers.
          batch: what the dataset yields.
          carry: before the step.
          metrics: the worker's own values before the step.
          number: int64 scalar, the step's.
          learning_rate: float32 scalar.
          repeats: int64 scalar; see `Pusher.push`.

        Returns:
          (carry, metrics, the tallies of computing and of the push).
        """
        parameters = self._gradient.pull(handles, batch, carry.copies, number)  # ps -> worker
        computed = self._gradient.compute(batch, parameters, carry.residuals, metrics, number)
        pushed = self._gradient.push(  # worker -> ps
            handles, computed.sent, learning_rate, repeats=repeats
        )
        carry = AsyncCarry(computed.residuals, self._gradient.puller.copies(parameters.pulled))
        return carry, computed.metrics, (computed.tally, pushed)

    def _steps(self, handles, source, carry, own, count, first, learning_rate, repeats):
        def step(i, batch, state):
            carry, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            carry, metrics, tallies = self._step(
                handles, batch, carry, metrics, number, learning_rate, repeats
            )
            return carry, metrics, added(total, *tallies)

        state = carry, self.own.begin(own), zeros()
        done, (carry, metrics, total) = repeat(step, source, count, state, self._single)
        report = self.own.report(own, done, total, metrics)
        return report, carry, self.own.end(metrics)
