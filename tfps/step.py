"""What a worker runs: steps of training, evaluation and prediction.

Read `TrainStep._step` first: it is the whole of parameter-server training, in
the order in which the data flows. Each class traces its function once for a
form of input; the same concrete function then runs on every worker.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps import optimizers
from tfps.exchange import Exchange, Pulled, Push
from tfps.program import Program


class Stack(NamedTuple):
    """Several batches in one: every tensor has them along a new first axis."""

    batches: Any


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
        exchange: Exchange,
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
          exchange: the traffic with the servers.
          optimizer: the one that the model was compiled with.
          source: the form of the input: an iterator, the specs of one batch, or
            a `Stack` of specs.
          batch_spec: nested specs of one batch.
          single: every call is for one step.
          jit_compile: compile the forward and backward pass with XLA.
          overlap: 0, 1 or 2, see above.
        """
        self._program = program
        self._exchange = exchange
        self._optimizer = optimizer
        self._single = single
        self._overlap = overlap
        self.initial = program.initial_metrics()
        self._compute = tf.function(self._gradients, jit_compile=jit_compile, autograph=False)
        int32, int64, float32 = (tf.TensorSpec([], d) for d in (tf.int32, tf.int64, tf.float32))
        handles = exchange.handles()
        self._start = tf.function(self._started, autograph=False)
        residuals = tf.function(exchange.initial_residuals, autograph=False)
        carry = Carry(_specs(residuals.get_concrete_function()))
        if overlap:
            pulled = _specs(
                tf.function(exchange.pull, autograph=False).get_concrete_function(handles)
            )
            probe = tf.function(self._computed, autograph=False).get_concrete_function(
                handles, batch_spec, pulled, carry.residuals, self.initial, int64
            )
            self._pending_specs = _specs(probe)[0]
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
          handles: of the exchange.
          carry: of the epoch before, or None in the first one.
        """
        residuals = carry.residuals if carry else self._exchange.initial_residuals()
        return self._start(handles, residuals) if self._overlap else Carry(residuals)

    def __call__(
        self, handles, source, carry: Carry, count: int, first: int, learning_rate: float
    ) -> tuple[tf.Tensor, Carry]:
        """Trains on up to `count` batches; to be called under a worker's device.

        Args:
          handles: of the exchange.
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
        exchange = self._exchange
        if not self._overlap:
            pulled = exchange.pull(handles)  # ps -> worker
            sent, residuals, rest = self._computed(
                handles, batch, pulled, carry.residuals, metrics, number
            )
            staleness = exchange.push(handles, sent, learning_rate)  # worker -> ps
            return Carry(residuals), _tally(sent, staleness, *rest), rest
        # The servers see operations on one variable in this order; computing waits
        # for neither of them.
        if self._overlap == 1:
            staleness = exchange.push(handles, carry.pending, learning_rate)
            pulled = exchange.pull(handles)
        else:
            pulled = exchange.pull(handles)
            staleness = exchange.push(handles, carry.pending, learning_rate)
        sent, residuals, rest = self._computed(
            handles, batch, carry.pulled, carry.residuals, metrics, number
        )
        return Carry(residuals, pulled, sent), _tally(carry.pending, staleness, *rest), rest

    def _computed(self, handles, batch, pulled, residuals, metrics, number):
        """From parameters to what is to be pushed."""
        exchange = self._exchange
        seed = tf.stack([tf.cast(number % (1 << 31), tf.int32), 0])
        scale = exchange.pull_loss_scale(handles)
        lookups = self._program.lookups(exchange.tables, number, batch, training=True)
        found = exchange.pull_rows(handles, lookups, seed)
        ids = {i: one for i, (one, _) in found.items()}
        rows = {i: one for i, (_, one) in found.items()}
        updates, metrics, examples, finite = self._compute(
            pulled, rows, batch, metrics, number, scale
        )
        payloads, row_payloads, residuals = exchange.encode(updates, ids, residuals, seed, finite)
        sent = Push(payloads, row_payloads, pulled.version, tf.constant(True), finite, scale)
        return sent, residuals, (metrics, examples, *exchange.row_bytes(ids))

    def _gradients(self, pulled, rows, batch, metrics, number, scale):
        variables = self._exchange.unpack(pulled, rows)
        n = len(self._program.trainable)
        trainable, state = variables[:n], variables[n:]
        gradients, new_state, metrics, examples = self._program.train(
            trainable, state, metrics, number, scale, batch
        )
        gradients, finite = optimizers.prepare(self._optimizer, gradients, scale)
        return self._exchange.pack_updates(gradients, state, new_state), metrics, examples, finite

    def _steps(self, handles, source, carry, count, first, learning_rate):
        def step(i, batch, state):
            carry, metrics, tally = state
            number = first + tf.cast(i, tf.int64)
            carry, counted, (metrics, *_) = self._step(
                handles, batch, carry, metrics, number, learning_rate
            )
            return carry, metrics, _added(tally, counted)

        state = carry, self.initial, tf.zeros([len(Tally._fields)], tf.float64)
        done, (carry, metrics, tally) = _repeat(step, source, count, state, self._single)
        return _report(done, tally, metrics), carry

    def _started(self, handles, residuals):
        # A push that the servers do not apply takes the place of the one before the first.
        nothing = tf.nest.map_structure(
            lambda s: tf.zeros([n or 0 for n in s.shape], s.dtype), self._pending_specs
        )
        return Carry(residuals, self._exchange.pull(handles), nothing)

    def _flushed(self, handles, pending, learning_rate):
        staleness = self._exchange.push(handles, pending, learning_rate)
        zero = tf.constant(0.0, tf.float64)
        tally = _tally(pending, staleness, None, tf.constant(0, tf.int64), zero, zero)
        return _report(tf.constant(0), tally, self.initial)


class EvaluateStep:
    """Up to `count` batches of evaluation on a worker, with weights that it holds.

    Attributes:
      initial: the metric variables' values at the start of each call.
    """

    def __init__(
        self, program: Program, exchange: Exchange, source, single: bool, jit_compile: bool
    ):
        """Traces the step; see `TrainStep`."""
        self._program = program
        self._exchange = exchange
        self._single = single
        self.initial = program.initial_metrics()
        self._compute = tf.function(self._metrics, jit_compile=jit_compile, autograph=False)
        self._run = tf.function(self._steps, autograph=False).get_concrete_function(
            exchange.handles(), _pulled_specs(exchange), source, tf.TensorSpec([], tf.int32)
        )

    def __call__(self, handles, pulled, source, count: int) -> tf.Tensor:
        """Evaluates up to `count` batches with what was pulled; returns a `Report`'s vector."""
        return self._run(handles, pulled, source, tf.constant(count, tf.int32))

    def _metrics(self, pulled, rows, batch, metrics):
        variables = self._exchange.unpack(pulled, rows, exact=True)
        n = len(self._program.trainable)
        return self._program.evaluate(variables[:n], variables[n:], metrics, batch)

    def _steps(self, handles, pulled, source, count):
        def step(i, batch, state):
            metrics, tally = state
            rows = _rows(self._program, self._exchange, handles, batch)
            metrics, examples = self._compute(pulled, rows, batch, metrics)
            return metrics, _added(tally, Tally(examples=examples))

        state = self.initial, tf.zeros([len(Tally._fields)], tf.float64)
        done, (metrics, tally) = _repeat(step, source, count, state, self._single)
        return _report(done, tally, metrics)


class PredictStep:
    """The outputs for one batch, with weights that the worker holds."""

    def __init__(self, program: Program, exchange: Exchange, source, jit_compile: bool):
        """Traces the step; see `TrainStep`."""
        n = len(program.trainable)

        @tf.function(jit_compile=jit_compile, autograph=False)
        def compute(pulled, rows, batch):
            variables = exchange.unpack(pulled, rows, exact=True)
            return program.predict(variables[:n], variables[n:], batch)

        def run(handles, pulled, source):
            batch = source.get_next() if _is_iterator(source) else source
            return compute(pulled, _rows(program, exchange, handles, batch), batch)

        self._run = tf.function(run, autograph=False).get_concrete_function(
            exchange.handles(), _pulled_specs(exchange), source
        )

    def __call__(self, handles, pulled, source):
        """The model's outputs, as tensors on the worker."""
        return self._run(handles, pulled, source)


class Pull:
    """Reads all buckets onto a worker, for the steps that only read."""

    def __init__(self, exchange: Exchange):
        self._run = _exact_pull(exchange)

    def __call__(self, handles) -> Pulled:
        """Tensors on the device under which it is called."""
        return self._run(handles)


class Tally(NamedTuple):
    """What steps did, besides metrics.

    Attributes:
      examples: in the batches.
      pushes: applied by the servers.
      staleness: of these pushes, summed.
      max_staleness: of one of these pushes.
      bytes_up, bytes_down: of tables' rows and ids.
    """

    examples: Any = 0.0
    pushes: Any = 0.0
    staleness: Any = 0.0
    max_staleness: Any = 0.0
    bytes_up: Any = 0.0
    bytes_down: Any = 0.0


class Report(NamedTuple):
    """What a call of `TrainStep` or `EvaluateStep` did.

    Attributes:
      steps: int, steps done.
      tally: `Tally` of floats.
      metrics: arrays, the change of each metric variable.
    """

    steps: int
    tally: Tally
    metrics: list[np.ndarray]

    @classmethod
    def of(cls, vector: tf.Tensor, initial: list[tf.Tensor]) -> "Report":
        """Reads the float64 vector that a step returned."""
        vector = vector.numpy()
        offset = 1 + len(Tally._fields)
        tally = Tally(*vector[1:offset].tolist())
        metrics = []
        for start in initial:
            size = math.prod(start.shape)
            value = vector[offset : offset + size].reshape(start.shape)
            metrics.append(value - start.numpy().astype(np.float64))
            offset += size
        return cls(int(vector[0]), tally, metrics)


def _rows(program, exchange, handles, batch) -> dict:
    zero = tf.constant(0, tf.int64)
    lookups = program.lookups(exchange.tables, zero, batch, training=False)
    found = exchange.pull_rows(handles, lookups, tf.zeros([2], tf.int32), exact=True)
    return {i: rows for i, (_, rows) in found.items()}


def _repeat(step, source, count, state, single):
    """Runs `step(i, batch, state) -> state` over a source.

    Args:
      step: traced once.
      source: an iterator, one batch, or a `Stack`.
      count: int32 scalar, steps to do at most.
      state: nested tensors.
      single: the count is always 1: no loop is needed.

    Returns:
      (steps done, state).
    """
    if isinstance(source, Stack):

        def body(i, state):
            batch = tf.nest.map_structure(lambda t: t[i], source.batches)
            return i + 1, step(i, batch, state)

        return tf.while_loop(
            lambda i, _: i < count, body, [tf.constant(0), state], parallel_iterations=1
        )
    if not _is_iterator(source):
        return tf.constant(1), step(tf.constant(0), source, state)
    # The end of an iterator is asked for, not run into: an error of one worker's
    # call can end what other workers are doing on the same servers.
    if single:
        element = source.get_next_as_optional()

        def once():
            return tf.constant(1), step(tf.constant(0), element.get_value(), state)

        return tf.cond(element.has_value(), once, lambda: (tf.constant(0), state))

    def more(i, state, element):
        return tf.logical_and(i < count, element.has_value())

    def body(i, state, element):
        state = step(i, element.get_value(), state)
        # The element after the last step is left for the next call.
        element = tf.cond(i + 1 < count, source.get_next_as_optional, lambda: element)
        return i + 1, state, element

    first = source.get_next_as_optional()
    done, state, _ = tf.while_loop(
        more, body, [tf.constant(0), state, first], parallel_iterations=1
    )
    return done, state


def _tally(sent: Push, staleness, metrics, examples, bytes_up, bytes_down) -> Tally:
    del metrics
    # A push that the servers did not apply has missed nothing.
    applied = tf.cast(tf.logical_and(sent.live, sent.finite), tf.float64)
    staleness = tf.cast(staleness, tf.float64) * applied
    return Tally(examples, applied, staleness, staleness, bytes_up, bytes_down)


def _added(total: tf.Tensor, tally: Tally) -> tf.Tensor:
    new = tf.stack([tf.cast(t, tf.float64) for t in tally])
    is_max = [name == "max_staleness" for name in Tally._fields]
    return tf.where(is_max, tf.maximum(total, new), total + new)


def _report(steps, tally, metrics) -> tf.Tensor:
    # One vector, because every tensor that the chief fetches is a round trip.
    # float64 holds the float32 and int32 states of metrics exactly.
    if isinstance(tally, Tally):
        tally = tf.stack([tf.cast(t, tf.float64) for t in tally])
    parts = [tf.cast(steps, tf.float64)[None], tally]
    parts += [tf.reshape(tf.cast(m, tf.float64), [-1]) for m in metrics]
    return tf.concat(parts, 0)


def _is_iterator(source) -> bool:
    return isinstance(source, tf.data.Iterator)


def _exact_pull(exchange: Exchange):
    pull = tf.function(lambda handles: exchange.pull(handles, exact=True), autograph=False)
    return pull.get_concrete_function(exchange.handles())


def _pulled_specs(exchange: Exchange):
    return _specs(_exact_pull(exchange))


def _specs(function):
    """The specs of what a concrete function returns."""
    return tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype), function.structured_outputs
    )
