"""What a worker runs to train in rounds: it computes, and pushes when it is told to."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps.cluster.remote_function import RemoteFunction
from tfps.store.handles import ServerHandles
from tfps.store.pull import Copies
from tfps.worker.batch_loop import repeat
from tfps.worker.gradient import Change, Gradient, encoded, push
from tfps.worker.own_values import Own, OwnValues
from tfps.worker.tally import added, vector, zeros
from tfps.worker.tracing import COUNT, PUSH_NUMBERS, STEP_NUMBER, blank, form
from tfps.worker.worker_step import Residuals, WorkerMemory, kept


class SyncCarry(NamedTuple):
    """What a worker keeps from one call to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      copies: what the worker holds of buckets that are pulled as differences.
      change: what the worker has computed and has not been told to push.
    """

    residuals: Residuals
    copies: Copies
    change: Change


class SyncStep:
    """A step in two calls: one pulls and computes, the other encodes and pushes; a `RoundStep`.

    Between the calls the chief decides whose gradients make the round. Gradients that the chief
    drops were never encoded, so no residual is lost with them.
    """

    prefetches = False

    def __init__(self, gradient: Gradient, own: OwnValues, source: Any):
        """Traces both calls; see `AsyncStep` for the arguments."""
        self._gradient = gradient
        self.own = own
        handles = gradient.pusher.handles()
        self._change_specs = gradient.change_specs()
        residuals, copies = form(gradient.pusher.initial_residuals), gradient.puller.copy_specs()
        carry = SyncCarry(residuals, copies, self._change_specs)
        self._trace(handles, source, carry)
        self._push = RemoteFunction(self._pushed, handles, carry, numbers=PUSH_NUMBERS)

    def _trace(self, handles, source, carry) -> None:
        numbers = {"count": COUNT, "first": STEP_NUMBER}
        self._run = RemoteFunction(
            self._steps, handles, source, carry, self.own.specs, numbers=numbers
        )

    def start(self, handles: ServerHandles, memory: WorkerMemory | None) -> SyncCarry:
        """See `WorkerStep`."""
        residuals = kept(memory, self._gradient.pusher.initial_residuals())
        copies = self._gradient.puller.begin(handles)
        return SyncCarry(residuals, copies, blank(self._change_specs))

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
        return self._run(handles, source, carry, own, count=count, first=number)

    def push(
        self,
        handles: ServerHandles,
        carry: SyncCarry,
        number: int,
        share: float,
        expected: int,
        learning_rate: float,
        repeats: int = 0,
    ) -> tuple[tf.Tensor, SyncCarry]:
        """See `RoundStep`."""
        return self._push(
            handles,
            carry,
            number=number,
            share=share,
            expected=expected,
            learning_rate=learning_rate,
            repeats=repeats,
        )

    def finish(self, handles: ServerHandles, carry: SyncCarry, learning_rate: float) -> None:
        """See `WorkerStep`; nothing is pending between rounds."""

    def with_residuals(self, carry: SyncCarry, residuals: Residuals) -> SyncCarry:
        """See `RoundStep`."""
        return carry._replace(residuals=residuals)

    def rest(self, carry: SyncCarry) -> WorkerMemory:
        """See `WorkerStep`."""
        return WorkerMemory(carry.residuals, [])

    def _steps(self, handles, source, carry, own, count, first):
        def step(i, batch, state):
            copies, _, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            parameters = self._gradient.pull(handles, batch, copies, number)  # ps -> worker
            change, metrics, tally = self._gradient.change(batch, parameters, metrics, number)
            copies = self._gradient.puller.copies(parameters.pulled)
            return copies, change, metrics, added(total, tally)

        state = carry.copies, carry.change, self.own.begin(own), zeros()
        done, (copies, change, metrics, total) = repeat(
            step, source, count, state, single=True, conditional=True
        )
        report = self.own.report(own, done, total, metrics)
        return report, SyncCarry(carry.residuals, copies, change), self.own.end(metrics)

    def _pushed(self, handles, carry, number, share, expected, learning_rate, repeats):
        pusher = self._gradient.pusher
        sent, residuals = encoded(pusher, carry.change, carry.residuals, number, share)
        tally = push(pusher, handles, sent, learning_rate, expected, repeats=repeats)
        return vector(tf.constant(0), tally), carry._replace(residuals=residuals)
