"""What a worker runs to train in rounds: it computes, and pushes when it is told to."""

from typing import NamedTuple

import tensorflow as tf

from tfps.worker.batch_loop import blank, repeat
from tfps.worker.eval_step import specs
from tfps.worker.gradient import Change, Gradient, encoded, kept
from tfps.worker.tally import added, of_push, vector, zeros


class SyncCarry(NamedTuple):
    """What a worker keeps from one call to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      change: what it has computed and not been told to push.
    """

    residuals: dict[int, tuple]
    change: Change


class SyncStep:
    """A step in two calls: one pulls and computes, the other encodes and pushes.

    Between the two, the chief decides whose gradients make the round. What is
    dropped was never encoded, so no residual is lost with it.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(self, gradient: Gradient, source):
        """Traces both calls; see `AsyncStep` for the arguments."""
        self._gradient = gradient
        self.initial = gradient.program.initial_metrics()
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        handles = gradient.pusher.handles()
        self._change_specs = gradient.change_specs()
        residuals = tf.function(gradient.pusher.initial_residuals, autograph=False)
        carry = SyncCarry(specs(residuals.get_concrete_function()), self._change_specs)
        self._run = tf.function(self._steps, autograph=False).get_concrete_function(
            handles, source, carry, int32, int64
        )
        self._push = tf.function(self._pushed, autograph=False).get_concrete_function(
            handles, carry, int64, float32, int32, float32
        )

    def start(self, handles, before) -> SyncCarry:
        """See `AsyncStep.start`."""
        del handles
        residuals = kept(before, self._gradient.pusher.initial_residuals())
        return SyncCarry(residuals, blank(self._change_specs))

    def __call__(self, handles, source, carry, count, first, learning_rate):
        """Pulls and computes; see `AsyncStep`."""
        del learning_rate
        return self._run(handles, source, carry, count, first)

    def push(
        self, handles, carry, number: int, share: float, expected: int, learning_rate: float
    ) -> tuple[tf.Tensor, SyncCarry]:
        """Pushes what the last call computed; to be called under the worker's device.

        Args:
          handles: of the pusher.
          carry: of the last call.
          number: of the step, or any other that no step has twice.
          share: of the worker in the sum.
          expected: how many workers push in this round.
          learning_rate: for the optimizer, unless it follows a schedule.

        Returns:
          (vector of 0 steps; the carry for the next call).
        """
        return self._push(handles, carry, number, share, expected, learning_rate)

    def finish(self, handles, carry, learning_rate) -> None:
        """Nothing is pending between rounds."""

    def _change(self, handles, batch, metrics, number):
        found = self._gradient.pull_rows(handles, batch, number)
        pulled = self._gradient.puller.pull(handles)
        scale = self._gradient.puller.loss_scale(handles)
        return self._gradient.change(batch, pulled, found, scale, metrics, number)

    def _steps(self, handles, source, carry, count, first):
        def step(i, batch, state):
            _, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            change, metrics, examples = self._change(handles, batch, metrics, number)
            tally = self._gradient.tally(change, examples)
            return change, metrics, added(total, tally)

        state = carry.change, self.initial, zeros()
        done, (change, metrics, total) = repeat(
            step, source, count, state, single=True, conditional=True
        )
        return vector(done, total, metrics), SyncCarry(carry.residuals, change)

    def _pushed(self, handles, carry, number, share, expected, learning_rate):
        pusher = self._gradient.pusher
        sent, residuals = encoded(pusher, carry.change, carry.residuals, number, share)
        receipt = pusher.push(handles, sent, learning_rate, expected)
        tally = of_push(sent, receipt, pusher.payload_bytes)
        return vector(tf.constant(0), tally, self.initial), SyncCarry(residuals, carry.change)
