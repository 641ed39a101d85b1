"""What a worker runs to train on a copy of its own (Local SGD, DiLoCo)."""

from typing import NamedTuple

import tensorflow as tf

from tfps import layout, optimizers
from tfps.apply import is_trained
from tfps.gradient import Change, encoded, kept
from tfps.inference import specs
from tfps.optimizers import ServerOptimizer
from tfps.plan import FROZEN, LAST, SUM
from tfps.program import Program
from tfps.pull import Puller
from tfps.push import Pusher
from tfps.repeat import blank, repeat
from tfps.report import Tally, added, of_push, vector, zeros


class LocalCarry(NamedTuple):
    """What a worker keeps from one exchange to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      inner: the state of the worker's optimizer.
      change: how its copy differs from what it pulled, until that is pushed.
    """

    residuals: list
    inner: list
    change: Change


class LocalStep:
    """An exchange: pull the parameters, take steps on the copy, push the difference.

    In rounds the push is a call of its own, made when the chief says so; otherwise
    it is the end of the same call.

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
    ):
        """Traces both calls.

        Args:
          program, puller, pusher, optimizer: see `Gradient`; the optimizer is the
            worker's.
          source: see `TrainStep`.
          single: every call is for one step.
          jit_compile: compile a step with XLA.
          in_rounds: whether pushing is a call of its own.
          outer: the servers' optimizer, for its learning rate.
        """
        self._program = program
        self._puller = puller
        self._pusher = pusher
        self._optimizer = optimizer
        self._single = single
        self._in_rounds = in_rounds
        self._outer = outer
        self._plan = puller.store.plan
        self._trained = [i for i, b in enumerate(self._plan.buckets) if is_trained(b)]
        # On the chief: what every worker's state begins as.
        self._inner = ServerOptimizer(
            optimizer,
            [puller.store.stored[i] for i in self._trained],
            [self._plan.buckets[i].kind.decayed for i in self._trained],
        )
        self.initial = program.initial_metrics()
        self._train = tf.function(self._trained_once, jit_compile=jit_compile, autograph=False)
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        handles = pusher.handles()
        pulled = specs(tf.function(self._pull, autograph=False).get_concrete_function(handles))
        values, versions = pulled
        self._change_specs = specs(
            tf.function(self._difference, autograph=False).get_concrete_function(
                values, values, versions
            )
        )
        residuals = tf.function(pusher.initial_residuals, autograph=False)
        carry = LocalCarry(
            specs(residuals.get_concrete_function()),
            [tf.TensorSpec(v.shape, v.dtype) for v in self._inner.state],
            self._change_specs if in_rounds else (),
        )
        self._run = tf.function(self._steps, autograph=False).get_concrete_function(
            handles, source, carry, int32, int64, float32, float32
        )
        if in_rounds:
            self._push = tf.function(self._pushed, autograph=False).get_concrete_function(
                handles, carry, int64, float32, int32, float32
            )

    def start(self, handles, before) -> LocalCarry:
        """See `TrainStep.start`; the worker's optimizer goes on where it was."""
        del handles
        residuals = kept(before, self._pusher.initial_residuals())
        if isinstance(before, LocalCarry):
            inner = before.inner
        else:
            inner = [tf.identity(v.value) for v in self._inner.state]
        return LocalCarry(residuals, inner, blank(self._change_specs) if self._in_rounds else ())

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

    def finish(self, handles, carry, learning_rate) -> None:
        """Nothing is pending between exchanges."""

    def _pull(self, handles):
        pulled = self._puller.pull(handles, whole=True)
        return list(self._puller.decode(pulled).values()), pulled.versions

    def _trained_once(self, values, inner, batch, metrics, number, learning_rate):
        """One step on the worker's copy."""
        whole = self._puller.variables(dict(enumerate(values)))
        n = len(self._program.trainable)
        trainable = [whole[i] for i in range(n)]
        state = [whole[i] for i in range(n, len(whole))]
        scale = tf.constant(optimizers.static_loss_scale(self._optimizer))
        gradients, new_state, metrics, examples = self._program.train(
            trainable, state, metrics, number, scale, batch
        )
        gradients, _ = optimizers.prepare(self._optimizer, gradients, scale)
        changed = {i: g for i, g in enumerate(gradients) if g is not None}
        updated, inner = self._inner.apply(
            [values[i] for i in self._trained],
            inner,
            layout.pack([self._plan.buckets[i] for i in self._trained], changed),
            learning_rate,
        )
        after = dict(zip(self._trained, updated, strict=True))
        latest = {
            n + k: old if new is None else new
            for k, (old, new) in enumerate(zip(state, new_state, strict=True))
        }
        written = [i for i, b in enumerate(self._plan.buckets) if b.kind.treatment in (LAST, SUM)]
        packed = layout.pack([self._plan.buckets[i] for i in written], latest)
        after.update(zip(written, packed, strict=True))
        return [after.get(i, v) for i, v in enumerate(values)], inner, metrics, examples

    def _difference(self, before, after, versions) -> Change:
        """What the servers are to be told: as a gradient, the way back to where it began."""
        buckets: list = []
        for bucket, old, new in zip(self._plan.buckets, before, after, strict=True):
            treatment = bucket.kind.treatment
            told = {LAST: lambda o, n: n, SUM: lambda o, n: n - o, FROZEN: lambda o, n: ()}
            buckets.append(told.get(treatment, lambda o, n: o - n)(old, new))
        return Change(buckets, {}, {}, versions, tf.constant(True), tf.constant(1.0))

    def _steps(self, handles, source, carry, count, first, learning_rate, outer_rate):
        before, versions = self._pull(handles)
        arrived = Tally(bytes_down=self._puller.payload_bytes(whole=True))

        def step(i, batch, state):
            values, inner, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            values, inner, metrics, examples = self._train(
                values, inner, batch, metrics, number, learning_rate
            )
            return values, inner, metrics, added(total, Tally(examples, tf.constant(True)))

        state = before, carry.inner, self.initial, added(zeros(), arrived)
        done, (after, inner, metrics, total) = repeat(
            step, source, count, state, self._single, conditional=True
        )
        change = self._difference(before, after, versions)
        if self._in_rounds:
            return vector(done, total, metrics), LocalCarry(carry.residuals, inner, change)

        def exchange():
            sent, residuals = encoded(self._pusher, change, carry.residuals, first)
            return residuals, added(total, self._told(handles, sent, outer_rate, None))

        # Where there was no batch left, there is nothing to say.
        residuals, total = tf.cond(done > 0, exchange, lambda: (carry.residuals, total))
        return vector(done, total, metrics), LocalCarry(residuals, inner, ())

    def _pushed(self, handles, carry, number, share, expected, outer_rate):
        sent, residuals = encoded(self._pusher, carry.change, carry.residuals, number, share)
        tally = self._told(handles, sent, outer_rate, expected)
        after = LocalCarry(residuals, carry.inner, carry.change)
        return vector(tf.constant(0), tally, self.initial), after

    def _told(self, handles, sent, outer_rate, expected) -> Tally:
        receipt = self._pusher.push(handles, sent, outer_rate, expected)
        return of_push(sent.live, sent.finite, *receipt, self._pusher.payload_bytes)
