"""What a step writes to the servers.

Every method takes the resource handles as arguments, never as captures: a step
that was traced once goes on after a variable was replaced.
"""

from typing import NamedTuple

import tensorflow as tf

from tfps import _tf
from tfps.cluster.devices import ps_device
from tfps.store.aggregation import Applied
from tfps.store.buckets import pack
from tfps.store.handles import ServerHandles
from tfps.store.messages import coalesce
from tfps.store.parameter_store import ParameterStore
from tfps.store.resources import read, write
from tfps.store.tables import Ids
from tfps.store.treatment import state_treatment


class Push(NamedTuple):
    """What a step sends to the servers.

    Attributes:
      payloads: bucket -> what its codec sends; only buckets that the step changes.
      rows: table -> what it sends to each of its parts.
      versions: int64 [ps], of the parameters with which it was computed.
      live: bool scalar; false: it is none, and the servers do nothing.
      finite: bool scalar; false: gradients overflowed (loss scaling), and the
        servers only note that.
      loss_scale: float32 scalar that the worker used.
    """

    payloads: dict[int, tuple]
    rows: dict[int, list]
    versions: tf.Tensor
    live: tf.Tensor
    finite: tf.Tensor
    loss_scale: tf.Tensor


class Updates(NamedTuple):
    """What a step is to send, before codecs.

    Attributes:
      buckets: bucket -> a tensor of its shape; only buckets that the step changes.
      rows: table -> the gradients of the rows that the step looked up, [rows, width].
    """

    buckets: dict[int, tf.Tensor]
    rows: dict[int, tf.Tensor]


class Pusher:
    """Brings a step's updates from a worker into a store, inside of `tf.function`s."""

    def __init__(self, store: ParameterStore, update: Applied, scaled: bool = False):
        """Keeps its arguments.

        Args:
          store: with the variables.
          update: what the servers do with a push.
          scaled: divide the learning rate of a push by its staleness.
        """
        self._store = store
        self._plan = store.plan
        self._update = update
        self._scaled = scaled
        self.handles = update.handles
        self.clear = update.clear

    @property
    def payload_bytes(self) -> int:
        """Bytes that a push sends, as the codecs predict; rows of tables not counted."""
        return sum(self._channel(i).payload_bytes for i in self._sent)

    def pack_updates(self, gradients, old_state, new_state) -> Updates:
        """What a step is to send, before codecs.

        Args:
          gradients: per trainable variable, a tensor or None. Of tables they go
            by rows, unless they are pushed whole.
          old_state, new_state: per state variable, the pulled and the new value
            (None if untouched).
        """
        rows = {}
        if self._update.optimizer.by_rows:
            rows = {i: gradients[i] for i in self._plan.tables if gradients[i] is not None}
        changes = {i: g for i, g in enumerate(gradients) if g is not None and i not in rows}
        for i, (old, new) in enumerate(
            zip(old_state, new_state, strict=True), start=self._plan.num_trainable
        ):
            if new is not None:
                changes[i] = state_treatment(self._plan.variables[i]).change(old, new)
        packed = pack([self._plan.buckets[i] for i in self._sent], changes)
        return Updates(dict(zip(self._sent, packed, strict=True)), rows)

    def update_specs(self) -> Updates:
        """The specs of what `pack_updates` returns."""
        held = {i: self._plan.buckets[i] for i in self._sent}
        buckets = {i: tf.TensorSpec(b.shape, b.dtype) for i, b in held.items()}
        rows = {}
        for i, table in self._plan.tables.items():
            bucket = self._plan.buckets[table.parts[0].bucket]
            if self._update.optimizer.by_rows and bucket.kind.treatment.trained:
                rows[i] = tf.TensorSpec([None, *bucket.shape[1:]], bucket.dtype)
        return Updates(buckets, rows)

    def initial_residuals(self) -> dict[int, tuple]:
        """Bucket -> what a worker's codec remembers before the first step.

        The tensors are made on the caller's device. Every bucket that a step sends has an entry.
        """
        return {i: self._channel(i).initial_state() for i in self._sent}

    def shared(self, updates: Updates, share: tf.Tensor) -> Updates:
        """What `pack_updates` returned, times a worker's share of its round.

        Args:
          updates: see `pack_updates`.
          share: float32 scalar; 0 leaves zeros of whatever was there, infinite or not.
        """

        def times(t):
            return tf.math.multiply_no_nan(t, tf.cast(share, t.dtype))

        def averaged(i):
            return self._plan.buckets[i].kind.treatment.trained or self._update.takes(i)

        buckets = {i: times(t) if averaged(i) else t for i, t in updates.buckets.items()}
        return Updates(buckets, {i: times(t) for i, t in updates.rows.items()})

    def encode(
        self,
        updates: Updates,
        ids: dict[int, Ids],
        residuals: dict[int, tuple],
        seed: tf.Tensor,
        finite: tf.Tensor,
    ) -> tuple[dict[int, tuple], dict[int, list], dict[int, tuple]]:
        """Turns a step's updates into payloads, on the worker.

        Args:
          updates: of `pack_updates`.
          ids: table -> the ids whose rows the step looked up.
          residuals: of `initial_residuals`, or of the step before.
          seed: int32[2], another one for each step.
          finite: bool scalar; false leaves the residuals as they were, because the
            servers will skip what is sent.

        Returns:
          (payloads, rows, residuals); see `Push`.
        """
        payloads, after = {}, {}
        for i, tensor in updates.buckets.items():
            before = residuals[i]
            payloads[i], new = self._channel(i).encode(
                tensor, before, seed + tf.constant([0, 100 * i])
            )
            if self._store.loss_scale is not None:
                new = tf.nest.map_structure(lambda n, o: tf.where(finite, n, o), new, before)
            after[i] = new
        rows = {
            i: self._plan.tables[i].encode(gradient, ids[i], seed)
            for i, gradient in updates.rows.items()
        }
        return payloads, rows, after

    def push(
        self, handles: ServerHandles, sent: Push, learning_rate, expected=None, reads=()
    ) -> "Receipt":
        """Sends a step's updates to the servers, which take them in.

        On each ps, the update of all its buckets is one atomic step: it waits
        for the whole push of this worker, takes the ps's lock, and reads,
        computes and writes under it.

        Args:
          handles: of `handles`.
          sent: on the caller's device.
          learning_rate: float32 scalar.
          expected: int32 scalar, pushes in a round.
          reads: (ps, tensor) of rows that are read before in the same function. TensorFlow
            lets no update of a table overtake them, so the lock is not taken before.
        """
        receipt = Receipt(tf.constant(0, tf.int64), tf.constant(False))
        for p in range(self._plan.num_ps):
            mine = [i for i, b in enumerate(self._plan.buckets) if b.ps == p and i in sent.payloads]
            mine_sent = {i: sent.payloads[i] for i in mine}
            messages, restore = coalesce(tf.nest.flatten(mine_sent))
            rows = {
                part.bucket: (self._plan.tables[i], piece)
                for i, pieces in sent.rows.items()
                for part, piece in zip(self._plan.tables[i].parts, pieces, strict=True)
                if part.ps == p
            }
            with tf.device(ps_device(p)):
                arrived = tf.nest.map_structure(
                    tf.identity, (messages, {i: piece for i, (_, piece) in rows.items()})
                )
                payloads = tf.nest.pack_sequence_as(mine_sent, restore(arrived[0]))
                rows = {i: (table, arrived[1][i]) for i, (table, _) in rows.items()}
                self._write_state(handles, payloads, sent.live)
                if not (self._update.needs(p) or rows or p == 0):
                    continue
                one = self._locked_update(
                    p, handles, tf.nest.flatten(arrived) + [t for ps, t in reads if ps == p],
                    payloads, rows, sent, learning_rate, expected,
                )  # fmt: skip
            if p == 0:
                receipt = one
        return tf.nest.map_structure(tf.identity, receipt)

    @property
    def _sent(self) -> list[int]:
        """The buckets that a step pushes as a whole."""
        every = range(len(self._plan.buckets))
        return [i for i in every if self._update.optimizer.sends(i)]

    def _channel(self, i: int):
        return self._update.optimizer.channel(i)

    def _write_state(self, handles, payloads, live) -> None:
        live = tf.identity(live)
        for i, payload in payloads.items():
            bucket, handle = self._plan.buckets[i], handles.store.values[i]
            if not bucket.kind.treatment.state or self._update.takes(i):
                continue
            value = self._channel(i).decode(payload)
            bucket.kind.treatment.write(handle, bucket.dtype, bucket.shape, value, live)

    def _locked_update(self, p, handles, arrived, payloads, rows, sent, rate, expected):
        # Here, before any branch: what a branch takes in, TensorFlow asks for where it comes
        # from, and the worker's answer would wait behind all that is under way.
        rate, version_then = tf.identity(rate), sent.versions[p]
        live, finite, scale_then = map(tf.identity, (sent.live, sent.finite, sent.loss_scale))
        brought = [rate, version_then, live, finite, scale_then]
        with tf.control_dependencies([*arrived, *brought]):
            lock = tf.raw_ops.MutexLock(mutex=handles.store.locks[p])
        with tf.control_dependencies([lock]):
            version = read(handles.store.versions[p], tf.int64, ())
            missed = version - version_then
            scale = 1 / tf.maximum(1.0, tf.cast(missed, tf.float32)) if self._scaled else None
            written, updated = self._update.update(
                p, handles, payloads, rows, rate, scale, tf.logical_and(live, finite), expected
            )
            written += write([handles.store.versions[p]], [version + tf.cast(updated, tf.int64)])
            if p == 0 and self._store.loss_scale:
                written += self._update_loss_scale(handles, live, finite, scale_then, updated)
        with tf.control_dependencies(written):
            # Or the lock of one ps would be held until that of the ps before is free.
            _tf.independent(tf.raw_ops.ConsumeMutexLock(mutex_lock=lock))
        return Receipt(missed, updated)

    def _update_loss_scale(self, handles, live, finite, scale_then, updated):
        scale, good = (
            read(h, d, ())
            for h, d in zip(handles.store.loss_scale, (tf.float32, tf.int32), strict=True)
        )
        new = self._store.loss_scale.update(scale, good, scale_then, finite)
        # In rounds, the steps that went well are counted with the update.
        counts = tf.logical_and(live, tf.logical_or(updated, tf.logical_not(finite)))
        new = [tf.where(counts, n, o) for n, o in zip(new, (scale, good), strict=True)]
        return write(handles.store.loss_scale, new)


class Receipt(NamedTuple):
    """What the first ps says of a push.

    Attributes:
      staleness: int64 scalar: how many updates were made since the parameters
        were pulled with which it was computed.
      updated: bool scalar: whether the push brought an update.
    """

    staleness: tf.Tensor
    updated: tf.Tensor
