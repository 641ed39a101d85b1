"""What a worker runs to train on a copy of its own (Local SGD, DiLoCo)."""

from typing import NamedTuple

import tensorflow as tf

from tfps import optimizers
from tfps.gradient import Change, encoded, kept
from tfps.inference import specs
from tfps.local_copy import LocalCopy
from tfps.program import Program
from tfps.pull import Puller
from tfps.push import Push, Pusher
from tfps.repeat import blank, repeat
from tfps.report import Tally, added, of_push, vector, zeros
from tfps.wire import here


class Copy(NamedTuple):
    """Where a worker's steps begin.

    Attributes:
      values: per bucket, the parameters.
      versions: int64 [ps], the updates that are in them.
    """

    values: list
    versions: tf.Tensor


class LocalCarry(NamedTuple):
    """What a worker keeps from one exchange to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      inner: the state of the worker's optimizer.
      copy: that the next exchange begins with; () without overlap.
      change: the difference of the last exchange; () where it is not needed any more.
      pending: that difference, encoded; () but where the next exchange pushes it.
    """

    residuals: list
    inner: list
    copy: Copy | tuple = ()
    change: Change | tuple = ()
    pending: Push | tuple = ()


class LocalStep:
    """An exchange: pull the parameters, take steps on the copy, push the difference.

    In rounds the push is a call of its own, made when the chief says so; otherwise
    it is the end of the same call.

    With `overlap` 1, what is pulled is for the next exchange and arrives while this one
    trains. With 2, the difference of the last exchange is on its way at the same time
    (in rounds, as with 1). The next copy is what was pulled and, on it, the worker's own
    differences that were not in it: see `LocalCopy.advanced`. Related: Wang et al.,
    "Overlap Local-SGD", 2020; Kale et al., "Eager updates for overlapped communication and
    computation in DiLoCo", 2025.

    The servers take part in no condition; see `AheadStep`.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(
        self,
        program: Program,
        puller: Puller,
        pusher: Pusher,
        optimizer,
        source,
        single: bool,
        jit_compile: bool,
        in_rounds: bool,
        outer,
        overlap: int,
    ):
        """Traces the calls.

        Args:
          program, puller, pusher, optimizer: see `Gradient`; the optimizer is the
            worker's.
          source: see `TrainStep`.
          single: every call is for one step.
          jit_compile: compile a step with XLA.
          in_rounds: whether pushing is a call of its own.
          outer: the servers' optimizer, for its learning rate.
          overlap: 0, 1 or 2, see above.
        """
        self._puller = puller
        self._pusher = pusher
        self._single = single
        self._in_rounds = in_rounds
        self._outer = outer
        self._overlap = min(overlap, 1) if in_rounds else overlap
        self._local = LocalCopy(program, puller, optimizer, jit_compile)
        self.initial = program.initial_metrics()
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        handles = pusher.handles()

        def traced(function, *arguments):
            return tf.function(function, autograph=False).get_concrete_function(*arguments)

        self._copy = traced(self._pulled, handles)
        copy = specs(self._copy)
        residuals = specs(traced(pusher.initial_residuals))
        self._change = specs(traced(self._changed, copy, copy.values))
        self._sent, _ = specs(
            traced(lambda *a: encoded(pusher, *a), self._change, residuals, int64)
        )
        carry = LocalCarry(
            residuals,
            [tf.TensorSpec(v.shape, v.dtype) for v in self._local.inner.state],
            copy if self._overlap else (),
            self._change if in_rounds or self._overlap == 2 else (),
            self._sent if self._overlap == 2 else (),
        )
        self._run = traced(self._steps, handles, source, carry, int32, int64, float32, float32)
        if in_rounds:
            self._push = traced(self._pushed, handles, carry, int64, float32, int32, float32)
        if self._overlap == 2:
            self._flush = traced(self._flushed, handles, self._sent, float32)

    def start(self, handles, before) -> LocalCarry:
        """See `TrainStep.start`; the worker's optimizer goes on where it was."""
        residuals = kept(before, self._pusher.initial_residuals())
        if isinstance(before, LocalCarry):
            inner = before.inner
        else:
            inner = [tf.identity(v.value) for v in self._local.inner.state]
        return LocalCarry(
            residuals,
            inner,
            self._copy(handles) if self._overlap else (),
            blank(self._change) if self._in_rounds or self._overlap == 2 else (),
            blank(self._sent) if self._overlap == 2 else (),
        )

    def __call__(self, handles, source, carry, count, first, learning_rate):
        """One exchange, of up to `count` steps; see `TrainStep`."""
        return self._run(
            handles,
            source,
            carry,
            count,
            first,
            learning_rate,
            optimizers.settable_rate(self._outer),
        )

    def push(self, handles, carry, number, share, expected, learning_rate):
        """Pushes the difference; see `RoundStep.push`."""
        del learning_rate  # The worker's.
        return self._push(
            handles, carry, number, share, expected, optimizers.settable_rate(self._outer)
        )

    def finish(self, handles, carry, learning_rate) -> tf.Tensor | None:
        """Pushes what is pending; see `TrainStep.finish`."""
        del learning_rate
        if self._overlap < 2:
            return None
        return self._flush(handles, carry.pending, optimizers.settable_rate(self._outer))

    def _pulled(self, handles) -> Copy:
        pulled = self._puller.pull(handles, whole=True)
        return here(Copy(list(self._puller.decode(pulled).values()), pulled.versions))

    def _changed(self, copy: Copy, after) -> Change:
        told = self._local.difference(copy.values, after)
        return Change(told, {}, {}, copy.versions, tf.constant(True), tf.constant(1.0))

    def _steps(self, handles, source, carry, count, first, learning_rate, outer_rate):
        arrived = self._pulled(handles)  # ps -> worker; with overlap, for the next exchange
        copy = carry.copy if self._overlap else arrived
        counted = Tally(bytes_down=self._puller.payload_bytes(whole=True))

        def step(i, batch, state):
            values, inner, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            values, inner, metrics, examples = self._local.step(
                values, inner, batch, metrics, number, learning_rate
            )
            return values, inner, metrics, added(total, Tally(examples, tf.constant(True)))

        state = copy.values, carry.inner, self.initial, added(zeros(), counted)
        done, (after, inner, metrics, total) = repeat(
            step, source, count, state, self._single, conditional=True
        )
        change = self._changed(copy, after)
        if self._in_rounds:
            ahead = self._next(arrived, after, [change], 0) if self._overlap else ()
            return vector(done, total, metrics), LocalCarry(carry.residuals, inner, ahead, change)

        def told():
            sent, residuals = encoded(self._pusher, change, carry.residuals, first)
            return sent, residuals, change if self._overlap == 2 else ()

        def nothing():  # Where there was no batch left.
            pending = carry.pending if self._overlap == 2 else blank(self._sent)
            return pending, carry.residuals, carry.change

        some = done > 0
        sent, residuals, last = tf.cond(some, told, nothing)
        after_it = LocalCarry(residuals, inner)
        if self._overlap == 1:
            ahead = self._next(arrived, after, [change], tf.cast(some, tf.int64))
            after_it = after_it._replace(copy=ahead)
        if self._overlap == 2:
            own = tf.cast(carry.pending.live, tf.int64) + tf.cast(some, tf.int64)
            ahead = self._next(arrived, after, [carry.change, change], own)
            after_it = after_it._replace(copy=ahead, change=last, pending=sent)
            # No update may be under way in a call that ends with an error of its input, and
            # a call without a step counts nothing.
            sent = carry.pending._replace(live=tf.logical_and(carry.pending.live, some))
        total = added(total, self._told(handles, sent, outer_rate))  # worker -> ps
        return vector(done, total, metrics), after_it

    def _next(self, arrived: Copy, after, changes: list[Change], own) -> Copy:
        """The next copy, with `own` updates that this worker adds to what has arrived."""
        differences = [change.buckets for change in changes]
        values = self._local.advanced(arrived.values, after, differences)
        return here(Copy(values, arrived.versions + own))

    def _pushed(self, handles, carry, number, share, expected, outer_rate):
        sent, residuals = encoded(self._pusher, carry.change, carry.residuals, number, share)
        tally = self._told(handles, sent, outer_rate, expected)
        return vector(tf.constant(0), tally, self.initial), carry._replace(residuals=residuals)

    def _flushed(self, handles, pending, outer_rate):
        tally = self._told(handles, pending, outer_rate)
        return vector(tf.constant(0), tally, self.initial)

    def _told(self, handles, sent, outer_rate, expected=None) -> Tally:
        receipt = self._pusher.push(handles, sent, outer_rate, expected)
        return of_push(sent.live, sent.finite, *receipt, self._pusher.payload_bytes)
