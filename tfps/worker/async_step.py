"""What a worker runs to train by itself, asynchronously.

Read `AsyncStep._step` first: it is the whole of parameter-server training, in the
order in which the data flows. It is traced once for a form of input; the same
concrete function then runs on every worker. Where one call is one step, overlap is
done by `ahead_step.PrefetchStep` instead.
"""

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from tfps.store.messages import here
from tfps.store.push import Push, Pusher
from tfps.worker.batch_loop import blank, repeat
from tfps.worker.eval_step import specs
from tfps.worker.gradient import Gradient, encoded, kept
from tfps.worker.tally import Tally, added, of_push, vector, zeros


class Carry(NamedTuple):
    """What a worker keeps from one training step to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      pulled: the parameters of the next step; () without overlap.
      pending: what the last step is still to push; () but with `overlap` 2.
    """

    residuals: dict[int, tuple]
    pulled: Any = ()
    pending: Any = ()


class AsyncStep:
    """Up to `count` training steps on a worker in one call.

    With `overlap` 0, a step pulls, computes and pushes. With 1, the parameters of the
    next step are pulled while it computes, and of what it pushes every bucket leaves
    when its gradients are known: a gradient misses one update of its own worker. With
    2, the push waits for the next step and goes on from its beginning, and a gradient
    misses two.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(self, gradient: Gradient, source, single: bool, overlap: int = 0):
        """Traces the step.

        Args:
          gradient: the arithmetic.
          source: the form of the input: an iterator, the specs of one batch, or
            a `Stack` of specs.
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
            encode = tf.function(functools.partial(encoded, self._pusher), autograph=False)
            sent = encode.get_concrete_function(gradient.change_specs(), carry.residuals, int64)
            self._sent_specs, _ = specs(sent)
            self._start = tf.function(self._started, autograph=False).get_concrete_function(
                handles, carry.residuals
            )
            carry = Carry(carry.residuals, pulled, self._sent_specs if overlap == 2 else ())
        if overlap == 2:
            self._flush = tf.function(self._flushed, autograph=False).get_concrete_function(
                handles, self._sent_specs, float32
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
        if self._overlap < 2:
            return None
        return self._flush(handles, carry.pending, learning_rate)

    def _step(self, handles, batch, state, number, learning_rate):
        """One step.

        Args:
          handles: of the pusher.
          batch: what the dataset yields.
          state: (carry, metric values, vector of totals).
          number: int64 scalar, the step's.
          learning_rate: see `__call__`.
        """
        carry, metrics, total = state
        # The servers see what is done with a variable in the order of these lines;
        # what has nothing to do with one another goes on at the same time.
        found = self._gradient.pull_rows(handles, batch, number)  # ps -> worker
        scale = self._puller.loss_scale(handles)
        pulled = self._puller.pull(handles)
        if self._overlap == 2:
            pushed = push(self._pusher, handles, carry.pending, learning_rate, found)
        now = carry.pulled if self._overlap else pulled
        sent, residuals, metrics, total = compute(
            self._gradient, batch, now, found, scale, carry.residuals, metrics, number, total
        )
        if self._overlap == 2:
            return Carry(residuals, pulled, sent), metrics, added(total, pushed)
        pushed = push(self._pusher, handles, sent, learning_rate)  # worker -> ps
        return Carry(residuals, pulled if self._overlap else ()), metrics, added(total, pushed)

    def _steps(self, handles, source, carry, count, first, learning_rate):
        state = (carry, self.initial, zeros())

        def step(i, batch, state):
            number = first + tf.cast(i, tf.int64)
            return self._step(handles, batch, state, number, learning_rate)

        # What is carried has to stay on the worker. TensorFlow would leave what a
        # function merely passes on where it was made; out of a conditional it comes
        # to where the function runs.
        done, (carry, metrics, total) = repeat(
            step,
            source,
            count,
            state,
            self._single,
            conditional=self._overlap > 0,
        )
        return vector(done, total, metrics), carry

    def _started(self, handles, residuals):
        pulled = here(self._puller.pull(handles))
        if self._overlap < 2:
            return Carry(residuals, pulled)
        # A push that the servers do not apply takes the place of the one before the first.
        return Carry(residuals, pulled, blank(self._sent_specs))

    def _flushed(self, handles, pending, learning_rate):
        tally = push(self._pusher, handles, pending, learning_rate)
        return vector(tf.constant(0), tally, self.initial)


def compute(gradient: Gradient, batch, pulled, found, scale, residuals, metrics, number, total):
    """From parameters to what is to be pushed.

    Args:
      gradient: the arithmetic.
      batch, pulled, found, scale, metrics, number: see `Gradient.change`.
      residuals: of the codecs.
      total: vector to add to.

    Returns:
      (`Push`, residuals, metrics, total).
    """
    change, metrics, examples = gradient.change(batch, pulled, found, scale, metrics, number)
    sent, residuals = encoded(gradient.pusher, change, residuals, number)
    return sent, residuals, metrics, added(total, gradient.tally(change, examples))


def push(pusher: Pusher, handles, sent: Push, learning_rate, found=None) -> Tally:
    """Pushes, and tells what that did.

    Args:
      pusher, handles, sent, learning_rate: see `Pusher.push`.
      found: table -> rows that are pulled before in the same call.
    """
    reads = [read for one in (found or {}).values() for read in one.reads]
    receipt = pusher.push(handles, sent, learning_rate, reads=reads)
    return of_push(sent, receipt, pusher.payload_bytes)
