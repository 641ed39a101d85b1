"""What a worker runs to pull and push while it computes, where a call is several steps.

Where a call is one step on plain tensors, `PrefetchStep` does it better: it looks up the rows of
tables ahead, too, and has no condition in which the servers take part.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps.cluster.remote_function import RemoteFunction
from tfps.store.handles import ServerHandles
from tfps.store.messages import here
from tfps.store.pull import Pulled, Reads
from tfps.store.push import Push
from tfps.worker.batch_loop import repeat
from tfps.worker.gradient import Gradient, encoded
from tfps.worker.own_values import Own, OwnValues
from tfps.worker.tally import added, vector, zeros
from tfps.worker.tracing import RATE, STEP_NUMBER, STEP_NUMBERS, blank, form, traced
from tfps.worker.worker_step import Residuals, WorkerMemory, kept


class OverlappedCarry(NamedTuple):
    """What a worker keeps from one step to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      pulled: the parameters of the next step.
      pending: what the last step is still to push, with `overlap` 2; empty with 1.
    """

    residuals: Residuals
    pulled: Pulled
    pending: list[Push]


class OverlappedStep:
    """Up to `count` training steps in one call, each overlapped with the next; a `WorkerStep`.

    The parameters of the next step are pulled while a step computes. With `overlap` 1, of what a
    step pushes every bucket leaves when its gradients are known: a gradient misses one update of
    its own worker. With 2, the push waits for the next step and goes on from that step's
    beginning: a gradient misses two.
    """

    prefetches = False

    def __init__(self, gradient: Gradient, own: OwnValues, source: Any, single: bool, overlap: int):
        """Traces the step.

        Args:
          gradient: pull, compute, push.
          own: how the worker's own values go in and out.
          source: the form of the input: an iterator, the specs of one batch, or a `Stack` of specs.
          single: whether every call is for one step.
          overlap: 1 or 2, see above.
        """
        self._gradient = gradient
        self._puller, self._pusher = gradient.puller, gradient.pusher
        self._single = single
        self._waits = overlap == 2  # whether a push waits for the next step
        self.own = own
        handles = self._pusher.handles()
        residuals = form(self._pusher.initial_residuals)
        pending = []
        if self._waits:
            sent, _ = form(
                lambda *arguments: encoded(self._pusher, *arguments),
                gradient.change_specs(), residuals, STEP_NUMBER,
            )  # fmt: skip
            pending = [sent]
            self._flush = RemoteFunction(
                self._flushed, handles, sent, numbers={"learning_rate": RATE}
            )
        self._pending_specs = pending
        copies = self._puller.copy_specs()
        self._start = traced(self._started, handles, residuals, copies)
        carry = OverlappedCarry(residuals, form(self._arrived, handles, copies), pending)
        self._run = RemoteFunction(
            self._steps, handles, source, carry, own.specs, numbers=STEP_NUMBERS
        )

    def start(self, handles: ServerHandles, memory: WorkerMemory | None) -> OverlappedCarry:
        """See `WorkerStep`."""
        residuals = kept(memory, self._pusher.initial_residuals())
        return self._start(handles, residuals, self._puller.begin(handles))

    def __call__(
        self,
        handles: ServerHandles,
        source: Any,
        carry: OverlappedCarry,
        own: Own,
        count: int,
        number: int,
        learning_rate: float,
    ) -> tuple[tf.Tensor, OverlappedCarry, Own]:
        """See `WorkerStep`."""
        return self._run(
            handles, source, carry, own, count=count, first=number, learning_rate=learning_rate
        )

    def finish(
        self, handles: ServerHandles, carry: OverlappedCarry, learning_rate: float
    ) -> tf.Tensor | None:
        """See `WorkerStep`."""
        if not self._waits:
            return None
        return self._flush(handles, carry.pending[0], learning_rate=learning_rate)

    def rest(self, carry: OverlappedCarry) -> WorkerMemory:
        """See `WorkerStep`."""
        return WorkerMemory(carry.residuals, [])

    def _step(self, handles, batch, carry, metrics, number, learning_rate):
        """One step; returns (carry, metrics, tallies).

        The servers see what is done with a variable in the order of these lines. What does not
        depend on one another goes on at the same time.
        """
        reads: Reads = []
        copies = self._puller.copies(carry.pulled)
        ahead = self._gradient.pull(handles, batch, copies, number, reads)  # ps -> worker
        if self._waits:
            pushed = self._gradient.push(handles, carry.pending[0], learning_rate, reads)
        parameters = ahead._replace(pulled=carry.pulled)
        computed = self._gradient.compute(batch, parameters, carry.residuals, metrics, number)
        if not self._waits:
            pushed = self._gradient.push(handles, computed.sent, learning_rate, reads)
        pending = [computed.sent] if self._waits else []
        carry = OverlappedCarry(computed.residuals, ahead.pulled, pending)
        return carry, computed.metrics, (computed.tally, pushed)

    def _steps(self, handles, source, carry, own, count, first, learning_rate):
        def step(i, batch, state):
            carry, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            carry, metrics, tallies = self._step(
                handles, batch, carry, metrics, number, learning_rate
            )
            return carry, metrics, added(total, *tallies)

        # What is carried has to stay on the worker. TensorFlow leaves what a function merely passes
        # on where it was made; what comes out of a conditional is where the function runs.
        state = carry, self.own.begin(own), zeros()
        done, (carry, metrics, total) = repeat(
            step, source, count, state, self._single, conditional=True
        )
        return self.own.report(own, done, total, metrics), carry, self.own.end(metrics)

    def _arrived(self, handles, copies):
        return here(self._puller.pull(handles, copies=copies))

    def _started(self, handles, residuals, copies):
        # A push that the servers do not apply stands in for the push before the first one.
        return OverlappedCarry(
            residuals, self._arrived(handles, copies), blank(self._pending_specs)
        )

    def _flushed(self, handles, pending, learning_rate):
        tally = self._gradient.push(handles, pending, learning_rate)
        return vector(tf.constant(0), tally)
