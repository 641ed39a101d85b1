"""From parameters and a batch to what is to be pushed, on a worker."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps.model import server_optimizer
from tfps.model.stateless_model import StatelessModel
from tfps.store.pull import Pulled, Puller
from tfps.store.push import Push, Pusher, Updates
from tfps.store.tables import Found, Ids
from tfps.worker.tally import Tally


class Change(NamedTuple):
    """What a step would change, before codecs.

    Attributes:
      buckets: bucket -> a tensor of its shape; only buckets that the step changes.
      rows: table -> gradients of its rows.
      ids: table -> `tables.Ids` of these rows, without positions.
      versions: int64 [ps], of the parameters with which it was computed.
      finite: bool scalar; false: gradients overflowed (loss scaling).
      loss_scale: float32 scalar that was used.
    """

    buckets: dict[int, tf.Tensor]
    rows: dict[int, tf.Tensor]
    ids: dict[int, Ids]
    versions: tf.Tensor
    finite: tf.Tensor
    loss_scale: tf.Tensor


class Gradient:
    """The arithmetic of a training step, inside of `tf.function`s.

    Attributes:
      program, puller, pusher: the model and its traffic.
    """

    def __init__(
        self, program: StatelessModel, puller: Puller, pusher: Pusher, optimizer, jit_compile: bool
    ):
        """Keeps its arguments.

        Args:
          program: the model.
          puller, pusher: the traffic with the servers.
          optimizer: the one that the model was compiled with.
          jit_compile: compile the forward and backward pass with XLA.
        """
        self.program = program
        self.puller = puller
        self.pusher = pusher
        self._optimizer = optimizer
        self._compute = tf.function(self._computed, jit_compile=jit_compile, autograph=False)

    def pull_rows(self, handles, batch, number) -> dict[int, Found]:
        """The rows of tables that a batch looks up.

        Args:
          handles: of the pusher.
          batch: what the dataset yields.
          number: int64 scalar, the step's.
        """
        lookups = self.program.lookups(self.puller.tables, number, batch, training=True)
        return self.puller.rows(handles, lookups, seed_of(number))

    def change(
        self, batch, pulled: Pulled, found: dict[int, Found], scale, metrics, number
    ) -> tuple[Change, Any, tf.Tensor]:
        """One step's: (change, new metric values, int64 number of examples).

        Args:
          batch: what the dataset yields.
          pulled, found: the parameters.
          scale: float32 scalar by which the loss is multiplied.
          metrics: values before the step.
          number: int64 scalar, the step's.
        """
        # The model has the positions already, with the rows.
        ids = {i: one.ids._replace(positions=[]) for i, one in found.items()}
        rows = {i: one.rows for i, one in found.items()}
        updates, metrics, examples, finite = self._compute(
            pulled, rows, batch, metrics, number, scale
        )
        change = Change(updates.buckets, updates.rows, ids, pulled.versions, finite, scale)
        return change, metrics, examples

    def change_specs(self) -> Change:
        """The specs of a change, known without tracing the model."""
        buckets, rows = self.pusher.update_specs()
        looked_up = Ids(tf.TensorSpec([None], tf.int64), [], tf.TensorSpec([], tf.int32))
        ids = dict.fromkeys(self.puller.tables, looked_up)
        versions = tf.TensorSpec([self.puller.store.plan.num_ps], tf.int64)
        finite, scale = tf.TensorSpec([], tf.bool), tf.TensorSpec([], tf.float32)
        return Change(buckets, rows, ids, versions, finite, scale)

    def tally(self, change: Change, examples) -> Tally:
        """What computing a change counts: all but its push."""
        up, down = self.puller.store.plan.row_bytes(change.ids)
        down += self.puller.payload_bytes()
        return Tally(examples, change.finite, bytes_up=up, bytes_down=down)

    def _computed(self, pulled, rows, batch, metrics, number, scale):
        variables = self.puller.unpack(pulled, rows)
        n = len(self.program.trainable)
        trainable, state = variables[:n], variables[n:]
        gradients, new_state, metrics, examples = self.program.train(
            trainable, state, metrics, number, scale, batch
        )
        gradients, finite = server_optimizer.prepare(self._optimizer, gradients, scale)
        updates = self.pusher.pack_updates(gradients, state, new_state)
        return updates, metrics, examples, finite


def encoded(
    pusher: Pusher, change: Change, residuals, number, share=None
) -> tuple[Push, dict[int, tuple]]:
    """(what is sent, residuals after it).

    Args:
      pusher: the traffic up.
      change: what is to be sent.
      residuals: of the codecs.
      number: int64 scalar, the step's.
      share: float32 scalar by which it is multiplied; None: 1.
    """
    updates = Updates(change.buckets, change.rows)
    if share is not None:
        updates = pusher.shared(updates, share * tf.cast(change.finite, tf.float32))
    payloads, rows, residuals = pusher.encode(
        updates, change.ids, residuals, seed_of(number), change.finite
    )
    live = tf.constant(True)
    sent = Push(payloads, rows, change.versions, live, change.finite, change.loss_scale)
    return sent, residuals


def kept(before, fresh: dict[int, tuple]) -> dict[int, tuple]:
    """Residuals to go on with: those of a carry from before where they fit."""
    if before is None:
        return fresh

    def shapes(residual):
        return [(t.shape, t.dtype) for t in tf.nest.flatten(residual)]

    def fits(i):
        return i in before.residuals and shapes(before.residuals[i]) == shapes(fresh[i])

    return {i: before.residuals[i] if fits(i) else new for i, new in fresh.items()}


def at_rest(carry):
    """What is left of a carry when an epoch is over: no parameters, batches and pushes."""
    rest = [name for name in carry._fields if name not in ("residuals", "inner")]
    return carry._replace(**dict.fromkeys(rest, ()))


def seed_of(number: tf.Tensor) -> tf.Tensor:
    """int32[2] for the codecs of a step."""
    return tf.stack([tf.cast(number % (1 << 31), tf.int32), 0])
