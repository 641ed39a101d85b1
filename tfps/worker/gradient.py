"""What every training step consists of: pull, compute, push."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps.model.gradients import unscale_and_clip
from tfps.model.row_ids import row_ids
from tfps.model.stateless_model import StatelessModel
from tfps.store.handles import ServerHandles
from tfps.store.pull import Copies, Pulled, Puller, Reads
from tfps.store.push import Push, Pusher, Updates
from tfps.store.tables import Found, Ids
from tfps.worker.tally import Tally, of_push
from tfps.worker.worker_step import Residuals


class Parameters(NamedTuple):
    """What a step computes with.

    Attributes:
      pulled: the buckets.
      found: table -> the rows that the batch looks up.
      scale: float32 scalar by which the loss is multiplied.
      counts: `StatelessModel.counts`, as the servers have them.
    """

    pulled: Pulled
    found: dict[int, Found]
    scale: tf.Tensor
    counts: list[tf.Tensor]


class Change(NamedTuple):
    """What a step would change, before codecs.

    Attributes:
      buckets: bucket -> a tensor of its shape; only buckets that the step changes.
      rows: table -> the gradients of its rows.
      ids: table -> the ids of these rows, without positions.
      versions: int64 [ps], of the parameters with which the change was computed.
      finite: bool scalar; false if gradients overflowed (loss scaling).
      loss_scale: float32 scalar that the loss was multiplied by.
      records: see `Push.records`.
    """

    buckets: dict[int, tf.Tensor]
    rows: dict[int, tf.Tensor]
    ids: dict[int, Ids]
    versions: tf.Tensor
    finite: tf.Tensor
    loss_scale: tf.Tensor
    records: list[tf.Tensor]


class Computed(NamedTuple):
    """What computing a step leaves on the worker.

    Attributes:
      sent: what is to be pushed.
      residuals: of the codecs.
      metrics: new values of the metric variables.
      tally: what the step counts, apart from its push.
    """

    sent: Push
    residuals: Residuals
    metrics: list[tf.Tensor]
    tally: Tally


class Gradient:
    """The three parts of a training step, inside of `tf.function`s.

    Attributes:
      program, puller, pusher: the model and its traffic.
    """

    def __init__(
        self,
        program: StatelessModel,
        puller: Puller,
        pusher: Pusher,
        optimizer: Any,
        jit_compile: bool,
    ):
        """Makes ready to trace steps.

        Args:
          program: the model.
          puller, pusher: the traffic with the servers.
          optimizer: the one that the model was compiled with.
          jit_compile: whether to compile the forward and the backward pass with XLA.
        """
        self.program = program
        self.puller = puller
        self.pusher = pusher
        self._optimizer = optimizer
        self._compute = self._computed
        if not program.model.run_eagerly:
            self._compute = program.devices.graph(self._computed, jit_compile)

    def pull(
        self,
        handles: ServerHandles,
        batch: Any,
        copies: Copies,
        number: tf.Tensor,
        reads: Reads | None = None,
    ) -> Parameters:
        """Brings what a step needs to the worker.

        Args:
          handles: of the pusher.
          batch: what the dataset yields; it says which rows of tables are needed.
          copies: what the worker holds; see `Puller.pull`.
          number: int64 scalar, the step's.
          reads: takes note of what is read, for a push of the same call that comes later.
        """
        found = self.pull_rows(handles, batch, number)
        return self.pull_rest(handles, found, copies, reads)

    def pull_rest(
        self,
        handles: ServerHandles,
        found: dict[int, Found],
        copies: Copies,
        reads: Reads | None = None,
    ) -> Parameters:
        """What a step needs besides the rows of tables; see `pull`."""
        if reads is not None:
            reads += [read for one in found.values() for read in one.reads]
        scale, counts = self.puller.loss_scale(handles), self.counts(handles)
        pulled = self.puller.pull(handles, reads=reads, copies=copies)
        return Parameters(pulled, found, scale, counts)

    def counts(self, handles: ServerHandles) -> list[tf.Tensor]:
        """The updates of the optimizers whose `iterations` the step reads, integer scalars."""
        return [self.puller.count(handles, v) for v in self.program.counts]

    def pull_rows(self, handles: ServerHandles, batch: Any, number: tf.Tensor) -> dict[int, Found]:
        """The rows of tables that a batch looks up; see `pull`."""
        lookups = row_ids(self.program, self.puller.tables, number, batch, "train")
        return self.puller.rows(handles, lookups, seed_of(number))

    def change(
        self, batch: Any, parameters: Parameters, metrics: list[tf.Tensor], number: tf.Tensor
    ) -> tuple[Change, list[tf.Tensor], Tally]:
        """Computes a step.

        Args:
          batch: what the dataset yields.
          parameters: for this batch.
          metrics: values of the metric variables before the step.
          number: int64 scalar, the step's.

        Returns:
          (the change, new values of the metric variables, what the step counts apart from its
          push).
        """
        pulled, found, scale, counts = parameters
        # The positions stay with the rows, which the model has already.
        ids = {i: one.ids._replace(positions=[]) for i, one in found.items()}
        rows = {i: one.rows for i, one in found.items()}
        updates, metrics, examples, finite = self._compute(
            pulled, rows, batch, metrics, number, scale, counts
        )
        records = self.pusher.records(examples)
        change = Change(updates.buckets, updates.rows, ids, pulled.versions, finite, scale, records)
        up, down = self.puller.store.plan.row_bytes(ids)
        down = tf.add_n([down, *pulled.beyond]) + self.puller.payload_bytes()
        return change, metrics, Tally(examples, finite, bytes_up=up, bytes_down=down)

    def compute(
        self,
        batch: Any,
        parameters: Parameters,
        residuals: Residuals,
        metrics: list[tf.Tensor],
        number: tf.Tensor,
    ) -> Computed:
        """Computes a step and encodes what is to be pushed; see `change` and `encoded`."""
        change, metrics, tally = self.change(batch, parameters, metrics, number)
        sent, residuals = encoded(self.pusher, change, residuals, number)
        return Computed(sent, residuals, metrics, tally)

    def push(
        self,
        handles: ServerHandles,
        sent: Push,
        learning_rate: tf.Tensor,
        reads: Reads | None = None,
        repeats: tf.Tensor | None = None,
    ) -> Tally:
        """Pushes.

        Args:
          handles: of the pusher.
          sent: what to push.
          learning_rate: float32 scalar.
          reads: what is pulled before the push in the same call.
          repeats: see `Pusher.push`.

        Returns:
          What the push counts.
        """
        return push(self.pusher, handles, sent, learning_rate, reads=reads, repeats=repeats)

    def change_specs(self) -> Change:
        """The specs of a change, known without tracing the model."""
        buckets, rows = self.pusher.update_specs()
        looked_up = Ids(tf.TensorSpec([None], tf.int64), [], tf.TensorSpec([], tf.int32))
        ids = dict.fromkeys(self.puller.tables, looked_up)
        versions = tf.TensorSpec([self.puller.store.plan.num_ps], tf.int64)
        finite, scale = tf.TensorSpec([], tf.bool), tf.TensorSpec([], tf.float32)
        records = self.pusher.records(tf.TensorSpec([], tf.int64))
        return Change(buckets, rows, ids, versions, finite, scale, records)

    def _computed(self, pulled, rows, batch, metrics, number, scale, counts):
        variables = self.puller.unpack(pulled, rows)
        n = len(self.program.trainable)
        trainable, state = variables[:n], variables[n:]
        with self.program.devices.computing():
            trained = self.program.train(trainable, state, metrics, number, scale, batch, counts)
        gradients, finite = unscale_and_clip(self._optimizer, trained.gradients, scale)
        pairs = enumerate(zip(trainable, trained.assigned, strict=True))
        assigned = {i: (old, new) for i, (old, new) in pairs if new is not None}
        updates = self.pusher.pack_updates(gradients, state, trained.state, assigned)
        return updates, trained.metrics, trained.examples, finite


def encoded(
    pusher: Pusher,
    change: Change,
    residuals: Residuals,
    number: tf.Tensor,
    share: tf.Tensor | None = None,
) -> tuple[Push, Residuals]:
    """Passes a change through the codecs.

    Args:
      pusher: the traffic up.
      change: what is to be pushed.
      residuals: of the codecs.
      number: int64 scalar, the step's.
      share: float32 scalar by which the change is multiplied, or None for 1.

    Returns:
      (what is to be pushed, the residuals after it).
    """
    updates = Updates(change.buckets, change.rows)
    if share is not None:
        updates = pusher.shared(updates, share * tf.cast(change.finite, tf.float32))
    with pusher.on_host():
        payloads, rows, residuals = pusher.encode(
            updates, change.ids, residuals, seed_of(number), change.finite
        )
    live = tf.constant(True)
    sent = Push(
        payloads,
        rows,
        change.versions,
        number,
        live,
        change.finite,
        change.loss_scale,
        change.records,
    )
    return sent, residuals


def push(
    pusher: Pusher,
    handles: ServerHandles,
    sent: Push,
    learning_rate: tf.Tensor,
    expected: tf.Tensor | None = None,
    reads: Reads | None = None,
    repeats: tf.Tensor | None = None,
) -> Tally:
    """Pushes, and counts the push.

    Args:
      pusher: the traffic up.
      handles: of the pusher.
      sent: what to push.
      learning_rate: float32 scalar.
      expected: int32 scalar, how many workers push in this round; None outside of rounds.
      reads: what is pulled before the push in the same call.
      repeats: see `Pusher.push`.
    """
    receipt = pusher.push(handles, sent, learning_rate, expected, reads or [], repeats)
    return of_push(sent, receipt, pusher.payload_bytes)


def seed_of(number: tf.Tensor) -> tf.Tensor:
    """int32[2] for the codecs of a step."""
    return tf.stack([tf.cast(number % (1 << 31), tf.int32), 0])
