"""What a worker runs to train on a copy of its own (Local SGD, DiLoCo)."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps.cluster.remote_function import RemoteFunction
from tfps.model import optimizer_traits
from tfps.store.handles import ServerHandles
from tfps.store.messages import here
from tfps.store.pull import Copies
from tfps.store.push import Pusher
from tfps.worker.batch_loop import repeat
from tfps.worker.gradient import Change, encoded, push
from tfps.worker.local_copy import LocalCopy
from tfps.worker.own_values import Own, OwnValues
from tfps.worker.tally import Tally, added, examples_of, vector, zeros
from tfps.worker.tracing import (
    PUSH_NUMBERS,
    RATE,
    REPEATABLE_NUMBERS,
    STEP_NUMBER,
    blank,
    form,
    traced,
)
from tfps.worker.worker_step import Residuals, WorkerMemory, kept

_NUMBERS = {**REPEATABLE_NUMBERS, "outer_rate": RATE}


class Copy(NamedTuple):
    """Parameters as pulled.

    Attributes:
      values: bucket -> tensor.
      versions: int64 [ps], how many updates are in the values.
      beyond: see `Pulled.beyond`.
    """

    values: dict[int, tf.Tensor]
    versions: tf.Tensor
    beyond: list[tf.Tensor]


class LocalCarry(NamedTuple):
    """What a worker keeps from one exchange to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      inner: the state of the worker's optimizer.
      values: the worker's copy, bucket -> tensor; empty without a delay.
      copies: what the worker has pulled of buckets that are pulled as differences.
    """

    residuals: Residuals
    inner: list[tf.Tensor]
    values: dict[int, tf.Tensor]
    copies: Copies


class Trained(NamedTuple):
    """What the steps of an exchange leave on the worker.

    Attributes:
      change: the pseudo-gradient, and what has become of the model's state.
      carry: for the next exchange, with the residuals of before.
      done: int32 scalar, steps done.
      metrics: the worker's own values after the last step.
      total: float64 vector, see `tally.added`.
    """

    change: Change
    carry: LocalCarry
    done: tf.Tensor
    metrics: list[tf.Tensor]
    total: tf.Tensor


class LocalSGDStep:
    """An exchange: pull the parameters, take steps on the copy, push the pseudo-gradient.

    With a delay, a worker takes that many steps on the copy that it has, while the parameters
    arrive. The worker takes all other steps on what was pulled, moved by what its first steps have
    changed. So it sees its own writes at once (read-my-writes, Ho et al., "More effective
    distributed ML via a stale synchronous parallel parameter server", 2013).

    The servers take part in no condition; see `PrefetchStep`. It is a `WorkerStep`.
    """

    prefetches = False

    def __init__(
        self,
        local: LocalCopy,
        pusher: Pusher,
        own: OwnValues,
        source: Any,
        single: bool,
        outer: keras.optimizers.Optimizer,
        delay: int,
    ):
        """Traces the calls.

        Args:
          local: the arithmetic on a copy.
          pusher: the traffic up.
          own: how the worker's own values go in and out.
          source: the form of the input, as for `AsyncStep`.
          single: whether every call is for one step.
          outer: the servers' optimizer, for its learning rate.
          delay: steps, see above.
        """
        self._local = local
        self._puller, self._pusher = local.puller, pusher
        self._single = single
        self._outer = outer
        self._delay = delay
        self.own = own
        handles = pusher.handles()
        copies = self._puller.copy_specs(whole=True)
        copy = form(self._pulled, handles, copies)
        self._change_specs = form(self._changed, copy, copy.values, tf.TensorSpec([], tf.int64))
        residuals = form(pusher.initial_residuals)
        inner = [tf.TensorSpec(v.shape, v.dtype) for v in local.inner.state]
        carry = LocalCarry(residuals, inner, copy.values if delay else {}, copies)
        if delay:
            self._first_copy = traced(self._pulled, handles, copies)
        self._trace(handles, source, carry)

    def _trace(self, handles, source, carry: LocalCarry) -> None:
        self._sent_specs, _ = form(
            lambda *arguments: encoded(self._pusher, *arguments),
            self._change_specs, carry.residuals, STEP_NUMBER,
        )  # fmt: skip
        self._run = RemoteFunction(
            self._steps, handles, source, carry, self.own.specs, numbers=_NUMBERS
        )

    def start(self, handles: ServerHandles, memory: WorkerMemory | None) -> Any:
        """See `WorkerStep`; the worker's optimizer goes on where it was."""
        residuals = kept(memory, self._pusher.initial_residuals())
        if memory is not None and memory.inner:
            inner = memory.inner
        else:
            inner = [tf.identity(v.value) for v in self._local.inner.state]
        copies = self._puller.begin(handles, whole=True)
        if not self._delay:
            return LocalCarry(residuals, inner, {}, copies)
        first = self._first_copy(handles, copies)
        return LocalCarry(residuals, inner, first.values, self._copies(first))

    def __call__(
        self,
        handles: ServerHandles,
        source: Any,
        carry: Any,
        own: Own,
        count: int,
        number: int,
        learning_rate: float,
        repeats: int = 0,
    ) -> tuple[tf.Tensor, Any, Own]:
        """One exchange, of up to `count` steps; see `WorkerStep`."""
        outer_rate = optimizer_traits.settable_rate(self._outer)
        return self._run(
            handles,
            source,
            carry,
            own,
            count=count,
            first=number,
            learning_rate=learning_rate,
            outer_rate=outer_rate,
            repeats=repeats,
        )

    def finish(self, handles: ServerHandles, carry: Any, learning_rate: float) -> None:
        """See `WorkerStep`; nothing is pending between exchanges."""

    def rest(self, carry: Any) -> WorkerMemory:
        """See `WorkerStep`."""
        return WorkerMemory(carry.residuals, carry.inner)

    def _pulled(self, handles, copies) -> Copy:
        pulled = self._puller.pull(handles, whole=True, copies=copies)
        return here(Copy(self._puller.decode(pulled), pulled.versions, pulled.beyond))

    def _copies(self, arrived: Copy) -> Copies:
        return {i: arrived.values[i] for i in self._puller.copy_specs(whole=True)}

    def _changed(self, before: Copy, after, examples: tf.Tensor) -> Change:
        change, records = (
            self._local.difference(before.values, after),
            self._pusher.records(examples),
        )
        finite, scale = tf.constant(True), tf.constant(1.0)
        return Change(change, {}, {}, before.versions, finite, scale, records)

    def _train(self, handles, source, carry, own, count, first, learning_rate) -> Trained:
        arrived = self._pulled(handles, carry.copies)  # ps -> worker

        def step(i, batch, state):
            values, inner, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            values, inner, metrics, examples = self._local.step(
                values, inner, batch, metrics, number, learning_rate
            )
            return values, inner, metrics, added(total, Tally(examples, tf.constant(True)))

        def steps(until, begin, values, *state):
            return repeat(
                step, source, until, (values, *state), self._single, conditional=True, begin=begin
            )

        down = tf.constant(float(self._puller.payload_bytes(whole=True)), tf.float64)
        pulled = Tally(bytes_down=tf.add_n([down, *arrived.beyond]))
        state = carry.inner, self.own.begin(own), added(zeros(), pulled)
        if not self._delay:
            done, (after, inner, metrics, total) = steps(count, 0, arrived.values, *state)
        else:
            early = tf.minimum(count, self._delay)
            done, (after, *state) = steps(early, 0, carry.values, *state)
            moves = self._local.difference(carry.values, after)
            values = self._local.moved(arrived.values, moves, after)
            if self._single:
                after, (inner, metrics, total) = values, state
            else:
                until = tf.where(done < early, done, count)  # No further, if the data has ended.
                done, (after, inner, metrics, total) = steps(until, done, values, *state)
        kept_copy = here(after) if self._delay else {}
        return Trained(
            self._changed(arrived, after, examples_of(total)),
            LocalCarry(carry.residuals, inner, kept_copy, self._copies(arrived)),
            done,
            metrics,
            total,
        )

    def _steps(self, handles, source, carry, own, count, first, learning_rate, repeats, outer_rate):
        trained = self._train(handles, source, carry, own, count, first, learning_rate)
        # Where there was no batch left, a push without effect takes the place of the real one.
        sent, residuals = tf.cond(
            trained.done > 0,
            lambda: encoded(self._pusher, trained.change, carry.residuals, first),
            lambda: (blank(self._sent_specs), carry.residuals),
        )
        pushed = push(self._pusher, handles, sent, outer_rate, repeats=repeats)  # worker -> ps
        total = added(trained.total, pushed)
        report = self.own.report(own, trained.done, total, trained.metrics)
        carry = trained.carry._replace(residuals=residuals)
        return report, carry, self.own.end(trained.metrics)


class RoundCarry(NamedTuple):
    """What a worker keeps from one call to the next in rounds.

    Attributes:
      local: see `LocalCarry`.
      change: of the last exchange.
    """

    local: LocalCarry
    change: Change


class LocalSGDRoundStep(LocalSGDStep):
    """An exchange whose push is a call of its own, made when the chief says so; a `RoundStep`."""

    def _trace(self, handles, source, carry: LocalCarry) -> None:
        both = RoundCarry(carry, self._change_specs)
        self._run = RemoteFunction(
            self._steps, handles, source, both, self.own.specs, numbers=_NUMBERS
        )
        self._push = RemoteFunction(
            self._pushed, handles, self._change_specs, carry.residuals, numbers=PUSH_NUMBERS
        )

    def start(self, handles: ServerHandles, memory: WorkerMemory | None) -> RoundCarry:
        """See `LocalSGDStep`."""
        return RoundCarry(super().start(handles, memory), blank(self._change_specs))

    def push(
        self,
        handles: ServerHandles,
        carry: RoundCarry,
        number: int,
        share: float,
        expected: int,
        learning_rate: float,
        repeats: int = 0,
    ) -> tuple[tf.Tensor, RoundCarry]:
        """See `RoundStep`; the servers' optimizer has a learning rate of its own."""
        del learning_rate
        rate = optimizer_traits.settable_rate(self._outer)
        report, residuals = self._push(
            handles,
            carry.change,
            carry.local.residuals,
            number=number,
            share=share,
            expected=expected,
            learning_rate=rate,
            repeats=repeats,
        )
        return report, carry._replace(local=carry.local._replace(residuals=residuals))

    def with_residuals(self, carry: RoundCarry, residuals: Residuals) -> RoundCarry:
        """See `RoundStep`."""
        return carry._replace(local=carry.local._replace(residuals=residuals))

    def rest(self, carry: RoundCarry) -> WorkerMemory:
        """See `WorkerStep`."""
        return super().rest(carry.local)

    def _steps(self, handles, source, carry, own, count, first, learning_rate, repeats, outer_rate):
        del repeats, outer_rate
        trained = self._train(handles, source, carry.local, own, count, first, learning_rate)
        report = self.own.report(own, trained.done, trained.total, trained.metrics)
        carry = RoundCarry(trained.carry, trained.change)
        return report, carry, self.own.end(trained.metrics)

    def _pushed(self, handles, change, residuals, number, share, expected, learning_rate, repeats):
        sent, residuals = encoded(self._pusher, change, residuals, number, share)
        tally = push(self._pusher, handles, sent, learning_rate, expected, repeats=repeats)
        return vector(tf.constant(0), tally), residuals
