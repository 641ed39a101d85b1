"""What a worker runs to train while its next batch and the parameters for it arrive."""

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from tfps.store.messages import here
from tfps.store.pull import Pulled
from tfps.store.push import Push
from tfps.store.tables import Found
from tfps.worker.async_step import compute, push
from tfps.worker.batch_loop import blank, next_of
from tfps.worker.eval_step import specs
from tfps.worker.gradient import Gradient, encoded, kept
from tfps.worker.tally import added, vector, zeros


class Held(NamedTuple):
    """A batch, and all that a worker needs to train on it.

    Attributes:
      batch: what the dataset yields.
      exists: bool scalar; false: there is none, and the rest means nothing.
      number: int64 scalar, the step's.
      pulled: the parameters.
      found: table -> the rows that the batch looks up.
      scale: float32 scalar by which the loss is multiplied.
    """

    batch: Any
    exists: tf.Tensor
    number: tf.Tensor
    pulled: Pulled
    found: dict[int, Found]
    scale: tf.Tensor


class PrefetchCarry(NamedTuple):
    """What a worker keeps from one call to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      held: for the next step.
      pending: what the last step is still to push; () but with `overlap` 2.
    """

    residuals: dict[int, tuple]
    held: Held
    pending: Push | tuple = ()


class PrefetchStep:
    """A training step that waits for nothing: what it computes with came during the last one.

    A call trains on the batch that the worker holds, takes the next one, and pulls
    what that needs: parameters, and the rows of tables that it looks up. With `overlap`
    1, every bucket of a push leaves when its gradients are known: a gradient misses one
    update of its own worker. With 2, the push waits for the next call and goes on from
    its beginning, and a gradient misses two.

    There is no condition in which the servers take part. They would learn of it in a
    message that waits behind the update of the last step, and pull and push would follow one
    another. Where there is no batch, something without effect is pulled and pushed.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(self, gradient: Gradient, source, batch_spec, overlap: int):
        """Traces the step.

        Args:
          gradient: the arithmetic.
          source: the form of the input: an iterator, or the specs of one batch.
          batch_spec: nested specs of one batch; `repeat.is_plain`.
          overlap: 1 or 2, see above.
        """
        self._gradient, self._pusher = gradient, gradient.pusher
        self._batch_spec = batch_spec
        self._overlap = overlap
        self.initial = gradient.program.initial_metrics()
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        handles = self._pusher.handles()

        def form(function, *arguments):
            return specs(tf.function(function, autograph=False).get_concrete_function(*arguments))

        residuals = form(self._pusher.initial_residuals)
        self._held = form(
            lambda *arguments: self._taken(*arguments)[0],
            handles, source, batch_spec, int32, int64,
        )  # fmt: skip
        encode = functools.partial(encoded, self._pusher)
        self._sent, _ = form(encode, gradient.change_specs(), residuals, int64)
        pending = self._sent if overlap == 2 else ()
        self._blank = tf.function(self._blanks, autograph=False).get_concrete_function()
        if overlap == 2:
            self._flush = tf.function(self._flushed, autograph=False).get_concrete_function(
                handles, self._sent, float32
            )
        self._run = tf.function(self._step, autograph=False).get_concrete_function(
            handles, source, PrefetchCarry(residuals, self._held, pending), int32, int64, float32
        )

    def start(self, handles, before) -> PrefetchCarry:
        """Begins an epoch on a worker, which holds no batch yet; see `AsyncStep.start`."""
        del handles
        held, pending = self._blank()
        return PrefetchCarry(kept(before, self._pusher.initial_residuals()), held, pending)

    def __call__(
        self, handles, source, carry: PrefetchCarry, count: int, number: int, learning_rate: float
    ) -> tuple[tf.Tensor, PrefetchCarry]:
        """Trains on the batch that is held; to be called under the worker's device.

        Args:
          handles: of the pusher.
          source: of the next batch.
          carry: of the call before, or of `start`.
          count: 1; 0: take no further batch.
          number: of the step on the next batch; no other step has the same.
          learning_rate: see `AsyncStep`.

        Returns:
          (float64 vector, see `Report`; the carry for the next call).
        """
        return self._run(handles, source, carry, count, number, learning_rate)

    def finish(self, handles, carry: PrefetchCarry, learning_rate: float) -> tf.Tensor | None:
        """Pushes what is pending; see `AsyncStep.finish`."""
        if self._overlap < 2:
            return None
        return self._flush(handles, carry.pending, learning_rate)

    def _step(self, handles, source, carry, count, number, learning_rate):
        # The servers see what is done with a variable in the order of these lines;
        # what has nothing to do with one another goes on at the same time.
        now, total = carry.held, zeros()
        held, found, sound = self._taken(handles, source, now.batch, count, number)  # ps -> worker

        def pushed(sent, live):  # worker -> ps
            sent = sent._replace(live=tf.logical_and(live, sound))
            return push(self._pusher, handles, sent, learning_rate, found)

        def computed():
            return compute(
                self._gradient, now.batch, now.pulled, now.found, now.scale, carry.residuals,
                self.initial, now.number, total,
            )  # fmt: skip

        def skipped():
            pending = carry.pending if self._overlap == 2 else blank(self._sent)
            return pending, carry.residuals, self.initial, total

        if self._overlap == 2:
            tally = pushed(carry.pending, tf.logical_and(carry.pending.live, now.exists))
        pending, residuals, metrics, total = tf.cond(now.exists, computed, skipped)
        if self._overlap == 1:
            tally, pending = pushed(pending, pending.live), ()
        report = vector(now.exists, added(total, tally), metrics, taken=held.exists)
        return report, PrefetchCarry(residuals, here(held), pending)

    def _taken(self, handles, source, before, count, number):
        """The next batch with what it needs.

        Args:
          handles, source, count, number: see `__call__`.
          before: the last batch. It stands in for the next where there is none: a batch of
            zeros may be one of which the model cannot look up anything.

        Returns:
          (`Held`, table -> rows as pulled, bool scalar that is there, and true, when the batch
          is there and right: no update may be under way in a call that ends with its error).
        """
        batch, exists = next_of(source, self._batch_spec, count > 0, before)
        found = self._gradient.pull_rows(handles, batch, number)
        puller = self._gradient.puller
        with tf.control_dependencies([*tf.nest.flatten(batch), exists]):
            sound = tf.identity(puller.has(found))
        scale, pulled = puller.loss_scale(handles), puller.pull(handles)
        kept_rows = {i: one._replace(reads=[]) for i, one in found.items()}
        return Held(batch, exists, number, pulled, kept_rows, scale), found, sound

    def _blanks(self):
        held = blank(self._held)._replace(exists=tf.constant(False))
        return held, blank(self._sent) if self._overlap == 2 else ()

    def _flushed(self, handles, pending, learning_rate):
        tally = push(self._pusher, handles, pending, learning_rate)
        return vector(tf.constant(0), tally, self.initial)
