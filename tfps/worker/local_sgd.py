"""What a worker runs to train on a copy of its own (Local SGD, DiLoCo)."""

import functools
from typing import NamedTuple

import tensorflow as tf

from tfps.model import optimizer_traits
from tfps.model.stateless_model import StatelessModel
from tfps.store.messages import here
from tfps.store.pull import Puller
from tfps.store.push import Pusher
from tfps.worker.batch_loop import blank, repeat
from tfps.worker.eval_step import specs
from tfps.worker.gradient import Change, encoded, kept
from tfps.worker.local_copy import LocalCopy
from tfps.worker.tally import Tally, added, of_push, vector, zeros


class Copy(NamedTuple):
    """Parameters as pulled.

    Attributes:
      values: bucket -> tensor.
      versions: int64 [ps], the updates that are in them.
    """

    values: dict[int, tf.Tensor]
    versions: tf.Tensor


class LocalCarry(NamedTuple):
    """What a worker keeps from one exchange to the next.

    Attributes:
      residuals: what the codecs have not sent yet.
      inner: the state of the worker's optimizer.
      values: its copy, bucket -> tensor; empty without a delay.
      change: the difference of the last exchange; () but in rounds.
    """

    residuals: dict[int, tuple]
    inner: list
    values: dict[int, tf.Tensor]
    change: Change | tuple = ()


class LocalSGDStep:
    """An exchange: pull the parameters, take steps on the copy, push the difference.

    In rounds the push is a call of its own, made when the chief says so; otherwise
    it is the end of the same call.

    With a delay, so many steps are taken on the copy that the worker has, while the
    parameters arrive. Then come all other steps, on what was pulled, moved by what
    these steps have changed: so it sees its own writes at once (read-my-writes, Ho et al.,
    "More effective distributed ML via a stale synchronous parallel parameter server", 2013).

    The servers take part in no condition; see `PrefetchStep`.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(
        self,
        program: StatelessModel,
        puller: Puller,
        pusher: Pusher,
        optimizer,
        source,
        single: bool,
        jit_compile: bool,
        in_rounds: bool,
        outer,
        delay: int,
    ):
        """Traces the calls.

        Args:
          program, puller, pusher, optimizer: see `Gradient`; the optimizer is the
            worker's.
          source: see `AsyncStep`.
          single: every call is for one step.
          jit_compile: compile a step with XLA.
          in_rounds: whether pushing is a call of its own.
          outer: the servers' optimizer, for its learning rate.
          delay: steps, see above.
        """
        self._puller = puller
        self._pusher = pusher
        self._single = single
        self._in_rounds = in_rounds
        self._outer = outer
        self._delay = delay
        self._local = LocalCopy(program, puller, optimizer, jit_compile)
        self.initial = program.initial_metrics()
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        handles = pusher.handles()

        def traced(function, *arguments):
            return tf.function(function, autograph=False).get_concrete_function(*arguments)

        copy = specs(traced(self._pulled, handles))
        residuals = specs(traced(pusher.initial_residuals))
        self._change_specs = specs(traced(self._changed, copy, copy.values))
        if not in_rounds:
            encode = functools.partial(encoded, pusher)
            self._sent_specs, _ = specs(traced(encode, self._change_specs, residuals, int64))
        carry = LocalCarry(
            residuals,
            [tf.TensorSpec(v.shape, v.dtype) for v in self._local.inner.state],
            copy.values if delay else {},
            self._change_specs if in_rounds else (),
        )
        self._start = traced(self._started, handles)
        self._run = traced(self._steps, handles, source, carry, int32, int64, float32, float32)
        if in_rounds:
            self._push = traced(
                self._pushed, handles, carry.change, residuals, int64, float32, int32, float32
            )

    def start(self, handles, before) -> LocalCarry:
        """See `AsyncStep.start`; the worker's optimizer goes on where it was."""
        residuals = kept(before, self._pusher.initial_residuals())
        if isinstance(before, LocalCarry):
            inner = before.inner
        else:
            inner = [tf.identity(v.value) for v in self._local.inner.state]
        return LocalCarry(residuals, inner, *self._start(handles))

    def __call__(self, handles, source, carry, count, first, learning_rate):
        """One exchange, of up to `count` steps; see `AsyncStep`."""
        return self._run(
            handles,
            source,
            carry,
            count,
            first,
            learning_rate,
            optimizer_traits.settable_rate(self._outer),
        )

    def push(self, handles, carry, number, share, expected, learning_rate):
        """Pushes the difference; see `SyncStep.push`."""
        del learning_rate  # The worker's.
        rate = optimizer_traits.settable_rate(self._outer)
        vector, residuals = self._push(
            handles, carry.change, carry.residuals, number, share, expected, rate
        )
        return vector, carry._replace(residuals=residuals)

    def finish(self, handles, carry, learning_rate) -> None:
        """Nothing is pending between exchanges."""

    def _started(self, handles):
        """All of a carry that an epoch begins with anew."""
        return (
            self._pulled(handles).values if self._delay else {},
            blank(self._change_specs) if self._in_rounds else (),
        )

    def _pulled(self, handles) -> Copy:
        pulled = self._puller.pull(handles, whole=True)
        return here(Copy(self._puller.decode(pulled), pulled.versions))

    def _changed(self, before: Copy, after) -> Change:
        difference = self._local.difference(before.values, after)
        return Change(difference, {}, {}, before.versions, tf.constant(True), tf.constant(1.0))

    def _steps(self, handles, source, carry, count, first, learning_rate, outer_rate):
        arrived = self._pulled(handles)  # ps -> worker
        counted = Tally(bytes_down=self._puller.payload_bytes(whole=True))

        def step(i, batch, state):
            values, inner, metrics, total = state
            number = first + tf.cast(i, tf.int64)
            values, inner, metrics, examples = self._local.step(
                values, inner, batch, metrics, number, learning_rate
            )
            return values, inner, metrics, added(total, Tally(examples, tf.constant(True)))

        def train(until, begin, values, *state):
            return repeat(
                step, source, until, (values, *state), self._single, conditional=True, begin=begin
            )

        state = carry.inner, self.initial, added(zeros(), counted)
        if not self._delay:
            done, (after, inner, metrics, total) = train(count, 0, arrived.values, *state)
        else:
            early = tf.minimum(count, self._delay)
            done, (after, *state) = train(early, 0, carry.values, *state)
            own = self._local.difference(carry.values, after)
            values = self._local.moved(arrived.values, own, after)
            if self._single:
                after, (inner, metrics, total) = values, state
            else:
                until = tf.where(done < early, done, count)  # At the end of the data: no further.
                done, (after, inner, metrics, total) = train(until, done, values, *state)
        change = self._changed(arrived, after)
        mine = LocalCarry(carry.residuals, inner, here(after) if self._delay else {})
        if self._in_rounds:
            return vector(done, total, metrics), mine._replace(change=change)

        # Where there was no batch left, there is nothing to say.
        sent, residuals = tf.cond(
            done > 0,
            lambda: encoded(self._pusher, change, carry.residuals, first),
            lambda: (blank(self._sent_specs), carry.residuals),
        )
        total = added(total, self._told(handles, sent, outer_rate))  # worker -> ps
        return vector(done, total, metrics), mine._replace(residuals=residuals)

    def _pushed(self, handles, change, residuals, number, share, expected, outer_rate):
        sent, residuals = encoded(self._pusher, change, residuals, number, share)
        tally = self._told(handles, sent, outer_rate, expected)
        return vector(tf.constant(0), tally, self.initial), residuals

    def _told(self, handles, sent, outer_rate, expected=None) -> Tally:
        receipt = self._pusher.push(handles, sent, outer_rate, expected)
        return of_push(sent, receipt, self._pusher.payload_bytes)
