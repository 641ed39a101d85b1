"""What a worker runs to train while its next batch and the parameters for it arrive."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps.cluster.remote_function import RemoteFunction
from tfps.store.handles import ServerHandles
from tfps.store.messages import here
from tfps.store.pull import Reads
from tfps.store.push import Push
from tfps.worker.batch_loop import next_of
from tfps.worker.gradient import Gradient, Parameters, encoded
from tfps.worker.own_values import Own, OwnValues
from tfps.worker.tally import added, vector, zeros
from tfps.worker.tracing import COUNT, RATE, STEP_NUMBER, STEP_NUMBERS, blank, form, traced
from tfps.worker.worker_step import Residuals, WorkerMemory, kept


class Held(NamedTuple):
    """A batch, and all that a worker needs to train on it.

    Attributes:
      batch: what the dataset yields.
      exists: bool scalar; false if there is no batch. All other members mean nothing then.
      number: int64 scalar, the step's.
      parameters: for this batch.
    """

    batch: Any
    exists: tf.Tensor
    number: tf.Tensor
    parameters: Parameters


class PrefetchCarry(NamedTuple):
    """What a worker keeps from one call to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      held: for the next step.
      pending: what the last step is still to push, with `overlap` 2; empty with 1.
    """

    residuals: Residuals
    held: Held
    pending: list[Push]


class PrefetchStep:
    """A step that waits for nothing, because the last step has fetched all it computes with.

    A call trains on the batch that the worker holds, takes the next batch, and pulls what that
    batch needs: parameters, and the rows of tables that it looks up. With `overlap` 1, every bucket
    of a push leaves when its gradients are known: a gradient misses one update of its own worker.
    With 2, the push waits for the next call and goes on from that call's beginning: a gradient
    misses two.

    There is no condition in which the servers take part. They would learn of the condition in a
    message that waits behind the update of the last step, and pull and push would follow one
    another. Where there is no batch, a pull and a push without effect are made in its place.

    It is a `WorkerStep`.
    """

    prefetches = True

    def __init__(
        self, gradient: Gradient, own: OwnValues, source: Any, batch_spec: Any, overlap: int
    ):
        """Traces the step.

        Args:
          gradient: pull, compute, push.
          own: how the worker's own values go in and out.
          source: the form of the input: an iterator, or the specs of one batch.
          batch_spec: nested specs of one batch; `batch_loop.is_plain`.
          overlap: 1 or 2, see above.
        """
        self._gradient, self._pusher = gradient, gradient.pusher
        self._batch_spec = batch_spec
        self._waits = overlap == 2  # whether a push waits for the next call
        self.own = own
        handles = self._pusher.handles()
        residuals = form(self._pusher.initial_residuals)
        self._held_specs = form(
            lambda *arguments: self._taken(*arguments)[0],
            handles, source, batch_spec, gradient.puller.copy_specs(), COUNT, STEP_NUMBER,
        )  # fmt: skip
        self._sent_specs, _ = form(
            lambda *arguments: encoded(self._pusher, *arguments),
            gradient.change_specs(), residuals, STEP_NUMBER,
        )  # fmt: skip
        self._pending_specs = [self._sent_specs] if self._waits else []
        self._blank = traced(self._blanks)
        if self._waits:
            self._flush = RemoteFunction(
                self._flushed, handles, self._sent_specs, numbers={"learning_rate": RATE}
            )
        carry = PrefetchCarry(residuals, self._held_specs, self._pending_specs)
        self._run = RemoteFunction(
            self._step, handles, source, carry, own.specs, numbers=STEP_NUMBERS
        )

    def start(self, handles: ServerHandles, memory: WorkerMemory | None) -> PrefetchCarry:
        """See `WorkerStep`; the worker holds no batch yet."""
        self._gradient.puller.begin(handles)
        return PrefetchCarry(kept(memory, self._pusher.initial_residuals()), *self._blank())

    def __call__(
        self,
        handles: ServerHandles,
        source: Any,
        carry: PrefetchCarry,
        own: Own,
        count: int,
        number: int,
        learning_rate: float,
    ) -> tuple[tf.Tensor, PrefetchCarry, Own]:
        """Trains on the batch that is held, and takes the next one.

        Args:
          handles: of the pusher.
          source: of the next batch.
          carry: of the call before, or of `start`.
          own: of the call before.
          count: 1, or 0 if no further batch is to be taken.
          number: of the step on the next batch; no other step has the same number.
          learning_rate: see `WorkerStep`.

        Returns:
          See `WorkerStep`.
        """
        return self._run(
            handles, source, carry, own, count=count, first=number, learning_rate=learning_rate
        )

    def finish(
        self, handles: ServerHandles, carry: PrefetchCarry, learning_rate: float
    ) -> tf.Tensor | None:
        """See `WorkerStep`."""
        if not self._waits:
            return None
        return self._flush(handles, carry.pending[0], learning_rate=learning_rate)

    def rest(self, carry: PrefetchCarry) -> WorkerMemory:
        """See `WorkerStep`."""
        return WorkerMemory(carry.residuals, [])

    def _step(self, handles, source, carry, own, count, first, learning_rate):
        # The servers see what is done with a variable in the order of these lines. What does not
        # depend on one another goes on at the same time.
        now, total, values = carry.held, zeros(), self.own.begin(own)
        reads: Reads = []
        copies = self._gradient.puller.copies(now.parameters.pulled)
        held, sound = self._taken(  # ps -> worker
            handles, source, now.batch, copies, count, first, reads
        )

        def push(sent, live):  # worker -> ps
            sent = sent._replace(live=tf.logical_and(live, sound))
            return self._gradient.push(handles, sent, learning_rate, reads)

        def computed():
            sent, residuals, metrics, tally = self._gradient.compute(
                now.batch, now.parameters, carry.residuals, values, now.number
            )
            return sent, residuals, metrics, added(total, tally)

        def skipped():
            pending = carry.pending[0] if self._waits else blank(self._sent_specs)
            return pending, carry.residuals, values, total

        if self._waits:
            last = carry.pending[0]
            pushed = push(last, tf.logical_and(last.live, now.exists))
        sent, residuals, metrics, total = tf.cond(now.exists, computed, skipped)
        if not self._waits:
            pushed = push(sent, sent.live)
        total = added(total, pushed)
        report = self.own.report(own, now.exists, total, metrics, taken=held.exists)
        carry = PrefetchCarry(residuals, here(held), [sent] if self._waits else [])
        return report, carry, self.own.end(metrics)

    def _taken(self, handles, source, before, copies, count, number, reads: Reads | None = None):
        """The next batch with what it needs.

        Args:
          handles, source, count, number: see `__call__`.
          before: the last batch. It stands in for the next batch where there is none: the model may
            be unable to look up anything for a batch of zeros.
          copies: what the worker holds of buckets that are pulled as differences.
          reads: takes note of what is read.

        Returns:
          (`Held`, bool scalar). The scalar exists, and is true, once the
          batch has arrived and all rows that it looks up exist: no update may be under way in a
          call that ends with an error of its input.
        """
        batch, exists = next_of(source, self._batch_spec, count > 0, before)
        found = self._gradient.pull_rows(handles, batch, number)
        puller = self._gradient.puller
        with tf.control_dependencies([*tf.nest.flatten(batch), exists]):
            sound = tf.identity(puller.has(found))
        parameters = self._gradient.pull_rest(handles, found, copies, reads)
        kept_rows = {i: one._replace(reads=[]) for i, one in found.items()}
        return Held(batch, exists, number, parameters._replace(found=kept_rows)), sound

    def _blanks(self):
        held = blank(self._held_specs)._replace(exists=tf.constant(False))
        return held, blank(self._pending_specs)

    def _flushed(self, handles, pending, learning_rate):
        tally = self._gradient.push(handles, pending, learning_rate)
        return vector(tf.constant(0), tally)
