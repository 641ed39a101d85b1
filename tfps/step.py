"""What a worker runs to train by itself, asynchronously.

Read `TrainStep._step` first: it is the whole of parameter-server training, in the
order in which the data flows. It is traced once for a form of input; the same
concrete function then runs on every worker.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps.gradient import Gradient, blank, encoded, kept
from tfps.inference import specs
from tfps.push import Push
from tfps.repeat import repeat
from tfps.report import Tally, added, of_push, vector, zeros


class Carry(NamedTuple):
    """What a worker keeps from one training step to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      pulled: the parameters of the next step; () without overlap.
      pending: what the last step is still to push; () without overlap.
    """

    residuals: list
    pulled: Any = ()
    pending: Any = ()


class TrainStep:
    """Up to `count` training steps on a worker in one call.

    With `overlap` 0, a step pulls, computes and pushes. With 1, it computes while
    the update of the step before is pushed and then, by the same servers, the
    parameters of the next step are sent: the network and the arithmetic work at
    the same time, and a gradient misses one update of its own worker. With 2,
    that push and that pull go on at the same time as well, one up and one down
    the line, and a gradient misses two.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(self, gradient: Gradient, source, batch_spec, single: bool, overlap: int = 0):
        """Traces the step.

        Args:
          gradient: the arithmetic.
          source: the form of the input: an iterator, the specs of one batch, or
            a `Stack` of specs.
          batch_spec: nested specs of one batch.
          single: every call is for one step.
          overlap: 0, 1 or 2, see above.
        """
        self._gradient = gradient
        self._puller, self._pusher = gradient.puller, gradient.pusher
        self._single = single
        self._overlap = overlap
        self.initial = gradient.program.initial_metrics()
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        handles = self._pusher.handles()
        residuals = tf.function(self._pusher.initial_residuals, autograph=False)
        carry = Carry(specs(residuals.get_concrete_function()))
        if overlap:
            pull = tf.function(self._puller.pull, autograph=False)
            pulled = specs(pull.get_concrete_function(handles))
            self._pending_specs = specs(
                tf.function(self._probe, autograph=False).get_concrete_function(
                    handles, batch_spec, pulled, carry.residuals, int64
                )
            )
            self._start = tf.function(self._started, autograph=False).get_concrete_function(
                handles, carry.residuals
            )
            carry = Carry(carry.residuals, pulled, self._pending_specs)
            self._flush = tf.function(self._flushed, autograph=False).get_concrete_function(
                handles, self._pending_specs, float32
            )
        self._run = tf.function(self._steps, autograph=False).get_concrete_function(
            handles, source, carry, int32, int64, float32
        )

    def start(self, handles, before) -> Carry:
        """Begins an epoch on a worker; to be called under its device.

        Args:
          handles: of the pusher.
          before: what the worker carried until now, in whatever kind of step; or None.
        """
        residuals = kept(before, self._pusher.initial_residuals())
        return self._start(handles, residuals) if self._overlap else Carry(residuals)

    def __call__(
        self, handles, source, carry: Carry, count: int, first: int, learning_rate: float
    ) -> tuple[tf.Tensor, Carry]:
        """Trains on up to `count` batches; to be called under a worker's device.

        Args:
          handles: of the pusher.
          source: an iterator, which may end early, one batch, or a `Stack`.
          carry: of the call before, or of `start`.
          count: steps to do at most.
          first: number of the first step; no other step has the same.
          learning_rate: for the optimizer, unless it follows a schedule.

        Returns:
          (float64 vector, see `Report`; the carry for the next call).
        """
        return self._run(handles, source, carry, count, first, learning_rate)

    def finish(self, handles, carry: Carry, learning_rate: float) -> tf.Tensor | None:
        """Ends an epoch on a worker: pushes what is pending.

        Returns:
          A vector as a call does, of 0 steps; None if nothing was pending.
        """
        if not self._overlap:
            return None
        return self._flush(handles, carry.pending, learning_rate)

    def _step(self, handles, batch, carry, metrics, number, learning_rate):
        # The servers see what is done with a variable in the order of these lines;
        # what has nothing to do with one another goes on at the same time.
        found = self._gradient.pull_rows(handles, batch, number)  # ps -> worker
        if self._overlap == 1:
            pushed = self._push(handles, carry.pending, learning_rate)
        pulled = self._puller.pull(handles)
        if self._overlap == 2:
            pushed = self._push(handles, carry.pending, learning_rate)
        now = carry.pulled if self._overlap else pulled
        sent, residuals, metrics, tally = self._computed(
            handles, batch, now, found, carry.residuals, metrics, number
        )
        if self._overlap:
            return Carry(residuals, pulled, sent), metrics, [tally, pushed]
        pushed = self._push(handles, sent, learning_rate)  # worker -> ps
        return Carry(residuals), metrics, [tally, pushed]

    def _computed(self, handles, batch, pulled, found, residuals, metrics, number):
        """From parameters to what is to be pushed."""
        change, metrics, examples = self._gradient.change(
            handles, batch, pulled, found, metrics, number
        )
        sent, residuals = encoded(self._pusher, change, residuals, number)
        tally = self._gradient.tally(change, examples)
        return sent, residuals, metrics, tally

    def _push(self, handles, sent: Push, learning_rate) -> Tally:
        receipt = self._pusher.push(handles, sent, learning_rate)
        return of_push(sent.live, sent.finite, *receipt, self._pusher.payload_bytes)

    def _steps(self, handles, source, carry, count, first, learning_rate):
        def step(i, batch, state):
            carry, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            carry, metrics, tallies = self._step(
                handles, batch, carry, metrics, number, learning_rate
            )
            for tally in tallies:
                total = added(total, tally)
            return carry, metrics, total

        # What is carried has to stay on the worker. TensorFlow would leave what a
        # function merely passes on where it was made; out of a conditional it comes
        # to where the function runs.
        done, (carry, metrics, total) = repeat(
            step,
            source,
            count,
            (carry, self.initial, zeros()),
            self._single,
            conditional=self._overlap > 0,
        )
        return vector(done, total, metrics), carry

    def _probe(self, handles, batch, pulled, residuals, number):
        """Traced for the form of a push."""
        found = self._gradient.pull_rows(handles, batch, number)
        return self._computed(handles, batch, pulled, found, residuals, self.initial, number)[0]

    def _started(self, handles, residuals):
        # A push that the servers do not apply takes the place of the one before the first.
        return Carry(residuals, self._puller.pull(handles), blank(self._pending_specs))

    def _flushed(self, handles, pending, learning_rate):
        return vector(tf.constant(0), self._push(handles, pending, learning_rate), self.initial)
