"""What a worker runs to train.

Read `TrainStep._step` first: it is the whole of parameter-server training, in the
order in which the data flows. It is traced once for a form of input; the same
concrete function then runs on every worker.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps import optimizers
from tfps.inference import specs
from tfps.program import Program
from tfps.pull import Puller
from tfps.push import Push, Pusher
from tfps.repeat import repeat
from tfps.report import Tally, added, vector


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

    def __init__(
        self,
        program: Program,
        puller: Puller,
        pusher: Pusher,
        optimizer,
        source,
        batch_spec,
        single: bool,
        jit_compile: bool,
        overlap: int = 0,
    ):
        """Traces the step.

        Args:
          program: the model.
          puller, pusher: the traffic with the servers.
          optimizer: the one that the model was compiled with.
          source: the form of the input: an iterator, the specs of one batch, or
            a `Stack` of specs.
          batch_spec: nested specs of one batch.
          single: every call is for one step.
          jit_compile: compile the forward and backward pass with XLA.
          overlap: 0, 1 or 2, see above.
        """
        self._program = program
        self._puller = puller
        self._pusher = pusher
        self._optimizer = optimizer
        self._single = single
        self._overlap = overlap
        self.initial = program.initial_metrics()
        self._compute = tf.function(self._gradients, jit_compile=jit_compile, autograph=False)
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        handles = puller.store.handles()
        self._start = tf.function(self._started, autograph=False)
        residuals = tf.function(pusher.initial_residuals, autograph=False)
        carry = Carry(specs(residuals.get_concrete_function()))
        if overlap:
            pulled = specs(tf.function(puller.pull, autograph=False).get_concrete_function(handles))
            self._pending_specs = specs(
                tf.function(self._probe, autograph=False).get_concrete_function(
                    handles, batch_spec, pulled, carry.residuals, int64
                )
            )
            carry = Carry(carry.residuals, pulled, self._pending_specs)
            self._flush = tf.function(self._flushed, autograph=False).get_concrete_function(
                handles, self._pending_specs, float32
            )
        self._run = tf.function(self._steps, autograph=False).get_concrete_function(
            handles, source, carry, int32, int64, float32
        )

    def start(self, handles, carry: Carry | None) -> Carry:
        """Begins an epoch on a worker; to be called under its device.

        Args:
          handles: of the store.
          carry: of the epoch before, or None in the first one.
        """
        residuals = carry.residuals if carry else self._pusher.initial_residuals()
        return self._start(handles, residuals) if self._overlap else Carry(residuals)

    def __call__(
        self, handles, source, carry: Carry, count: int, first: int, learning_rate: float
    ) -> tuple[tf.Tensor, Carry]:
        """Trains on up to `count` batches; to be called under a worker's device.

        Args:
          handles: of the store.
          source: an iterator, which may end early, one batch, or a `Stack`.
          carry: of the call before, or of `start`.
          count: steps to do at most.
          first: number of the first step; no other step has the same.
          learning_rate: for the optimizer, unless it follows a schedule.

        Returns:
          (float64 vector, see `Report`; the carry for the next call).
        """
        return self._run(
            handles,
            source,
            carry,
            tf.constant(count, tf.int32),
            tf.constant(first, tf.int64),
            tf.constant(learning_rate, tf.float32),
        )

    def finish(self, handles, carry: Carry, learning_rate: float) -> tf.Tensor | None:
        """Ends an epoch on a worker: pushes what is pending.

        Returns:
          A vector as a call does, of 0 steps; None if nothing was pending.
        """
        if not self._overlap:
            return None
        rate = tf.constant(learning_rate, tf.float32)
        return self._flush(handles, carry.pending, rate)

    def _step(self, handles, batch, carry, metrics, number, learning_rate):
        # The servers see what is done with a variable in the order of these lines;
        # what has nothing to do with one another goes on at the same time.
        found = self._pull_rows(handles, batch, number)  # ps -> worker
        if self._overlap == 1:
            staleness = self._pusher.push(handles, carry.pending, learning_rate)
        pulled = self._puller.pull(handles)
        if self._overlap == 2:
            staleness = self._pusher.push(handles, carry.pending, learning_rate)
        now = carry.pulled if self._overlap else pulled
        sent, residuals, rest = self._computed(
            handles, batch, now, found, carry.residuals, metrics, number
        )
        if self._overlap:
            return Carry(residuals, pulled, sent), _tally(carry.pending, staleness, *rest), rest
        staleness = self._pusher.push(handles, sent, learning_rate)  # worker -> ps
        return Carry(residuals), _tally(sent, staleness, *rest), rest

    def _pull_rows(self, handles, batch, number):
        lookups = self._program.lookups(self._puller.tables, number, batch, training=True)
        return self._puller.rows(handles, lookups, _seed(number))

    def _computed(self, handles, batch, pulled, found, residuals, metrics, number):
        """From parameters to what is to be pushed."""
        scale = self._puller.loss_scale(handles)
        ids = {i: one.ids for i, one in found.items()}
        rows = {i: one.rows for i, one in found.items()}
        updates, metrics, examples, finite = self._compute(
            pulled, rows, batch, metrics, number, scale
        )
        payloads, row_payloads, residuals = self._pusher.encode(
            updates, ids, residuals, _seed(number), finite
        )
        sent = Push(payloads, row_payloads, pulled.version, tf.constant(True), finite, scale)
        return sent, residuals, (metrics, examples, *self._puller.store.plan.row_bytes(ids))

    def _gradients(self, pulled, rows, batch, metrics, number, scale):
        variables = self._puller.unpack(pulled, rows)
        n = len(self._program.trainable)
        trainable, state = variables[:n], variables[n:]
        gradients, new_state, metrics, examples = self._program.train(
            trainable, state, metrics, number, scale, batch
        )
        gradients, finite = optimizers.prepare(self._optimizer, gradients, scale)
        return self._pusher.pack_updates(gradients, state, new_state), metrics, examples, finite

    def _steps(self, handles, source, carry, count, first, learning_rate):
        def step(i, batch, state):
            carry, metrics, tally = state
            number = first + tf.cast(i, tf.int64)
            carry, counted, (metrics, *_) = self._step(
                handles, batch, carry, metrics, number, learning_rate
            )
            return carry, metrics, added(tally, counted)

        state = carry, self.initial, tf.zeros([len(Tally._fields)], tf.float64)
        # What is carried has to stay on the worker. TensorFlow would leave what a
        # function merely passes on where it was made; out of a conditional it comes
        # to where the function runs.
        done, (carry, metrics, tally) = repeat(
            step, source, count, state, self._single, conditional=self._overlap > 0
        )
        return vector(done, tally, metrics), carry

    def _probe(self, handles, batch, pulled, residuals, number):
        """Traced for the form of a push."""
        found = self._pull_rows(handles, batch, number)
        return self._computed(handles, batch, pulled, found, residuals, self.initial, number)[0]

    def _started(self, handles, residuals):
        # A push that the servers do not apply takes the place of the one before the first.
        nothing = tf.nest.map_structure(
            lambda s: tf.zeros([n or 0 for n in s.shape], s.dtype), self._pending_specs
        )
        return Carry(residuals, self._puller.pull(handles), nothing)

    def _flushed(self, handles, pending, learning_rate):
        staleness = self._pusher.push(handles, pending, learning_rate)
        zero = tf.constant(0.0, tf.float64)
        tally = _tally(pending, staleness, None, tf.constant(0, tf.int64), zero, zero)
        return vector(tf.constant(0), tally, self.initial)


def _tally(sent: Push, staleness, metrics, examples, bytes_up, bytes_down) -> Tally:
    del metrics
    # A push that the servers did not apply has missed nothing.
    applied = tf.cast(tf.logical_and(sent.live, sent.finite), tf.float64)
    staleness = tf.cast(staleness, tf.float64) * applied
    return Tally(examples, applied, staleness, staleness, bytes_up, bytes_down)


def _seed(number: tf.Tensor) -> tf.Tensor:
    """int32[2] for the codecs of a step."""
    return tf.stack([tf.cast(number % (1 << 31), tf.int32), 0])
