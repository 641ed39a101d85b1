"""What a step writes to the servers.

Every method takes the resource handles as arguments, never as captures: a step that was traced
once goes on after a variable was replaced.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from tfps import _tf_tracing
from tfps.cluster.devices import ps_device
from tfps.store.aggregation import Aggregation, Arrived
from tfps.store.bucket_update import Rate
from tfps.store.buckets import pack
from tfps.store.channel import Channel
from tfps.store.handles import ServerHandles
from tfps.store.messages import coalesce
from tfps.store.parameter_store import ParameterStore
from tfps.store.resources import read, write
from tfps.store.server_state import AggregationState
from tfps.store.tables import Ids, SentRows


class Push(NamedTuple):
    """What a step sends to the servers.

    Attributes:
      payloads: bucket -> what its codec sends; only buckets that the step changes.
      rows: bucket of a table -> rows that are sent to it.
      versions: int64 [ps], the number of updates in the parameters with which it was computed.
      live: bool scalar, whether this push carries an update. False for the placeholder that a
        worker sends when it has no batch; servers then change nothing, so that the graph needs no
        branch across the network.
      finite: bool scalar. If it is false, gradients overflowed (loss scaling), and the servers
        only note that.
      loss_scale: float32 scalar by which the worker multiplied the loss.
    """

    payloads: dict[int, tuple]
    rows: dict[int, SentRows]
    versions: tf.Tensor
    live: tf.Tensor
    finite: tf.Tensor
    loss_scale: tf.Tensor


class _Told(NamedTuple):
    """What a ps is told besides the push: scalars, see `Pusher.push`."""

    learning_rate: tf.Tensor
    version: tf.Tensor
    expected: tf.Tensor | None


class Receipt(NamedTuple):
    """What the first ps says of a push.

    Attributes:
      staleness: int64 scalar, the number of updates that were made since the parameters were
        pulled with which the push was computed.
      updated: bool scalar, whether the push brought an update.
    """

    staleness: tf.Tensor
    updated: tf.Tensor


class Updates(NamedTuple):
    """What a step is to send, before codecs.

    Attributes:
      buckets: bucket -> a tensor of its shape; only buckets that the step changes.
      rows: table -> the gradients of the rows that the step looked up, [rows, ...].
    """

    buckets: dict[int, tf.Tensor]
    rows: dict[int, tf.Tensor]


class Pusher:
    """Brings a step's updates from a worker into a store, inside of `tf.function`s.

    Attributes:
      host: the worker's device on which pushes are encoded; None for the device in scope.
    """

    def __init__(
        self,
        store: ParameterStore,
        aggregation: Aggregation,
        scaled: bool = False,
        host: str | None = None,
    ):
        """Reads from the optimizer which buckets a step pushes.

        Args:
          store: with the variables.
          aggregation: what the servers do with a push.
          scaled: whether the learning rate of a push is divided by its staleness.
          host: see the attribute.
        """
        self.host = host
        self._store = store
        self._plan = store.plan
        self._aggregation = aggregation
        self._scaled = scaled
        every = range(len(self._plan.buckets))
        self._sent = [i for i in every if aggregation.optimizer.sends(i)]

    def on_host(self) -> contextlib.AbstractContextManager[None]:
        """The scope of the worker's device on which pushes are encoded."""
        return tf.device(self.host) if self.host else contextlib.nullcontext()

    def handles(self) -> ServerHandles:
        """The resource handles of everything on the servers, arguments of every step."""
        return self._aggregation.handles()

    def clear(self) -> None:
        """Forgets pushes of a round that did not become complete."""
        self._aggregation.clear()

    def renew(self, servers: Collection[int]) -> None:
        """Makes what is on some servers anew; see `Aggregation.renew`."""
        self._aggregation.renew(servers)

    def export(self) -> AggregationState:
        """What is on the servers beside the store; see `Aggregation.export`."""
        return self._aggregation.export()

    def restore(self, state: AggregationState) -> None:
        """Writes an exported state to the servers; see `Aggregation.restore`."""
        self._aggregation.restore(state)

    @property
    def payload_bytes(self) -> int:
        """Bytes that a push sends, as the codecs predict; rows of tables are not counted."""
        return sum(self._channel(i).payload_bytes for i in self._sent)

    # On the worker.

    def pack_updates(
        self,
        gradients: Sequence[tf.Tensor | None],
        old_state: Sequence[tf.Tensor],
        new_state: Sequence[tf.Tensor | None],
    ) -> Updates:
        """What a step is to send, before codecs.

        Args:
          gradients: per trainable variable, a tensor, or None if the loss does not depend on it.
            Those of tables are of rows, unless tables are pushed whole.
          old_state: per state variable, the value that was pulled.
          new_state: per state variable, the value after the step, or None if the model did not
            touch it.
        """
        rows = {}
        if self._aggregation.optimizer.by_rows:
            rows = {i: gradients[i] for i in self._plan.tables if gradients[i] is not None}
        changes = {i: g for i, g in enumerate(gradients) if g is not None and i not in rows}
        states = zip(old_state, new_state, strict=True)
        for i, (old, new) in enumerate(states, start=self._plan.num_trainable):
            if new is not None:
                changes[i] = self._plan.treatments[i].change(old, new)
        packed = pack([self._plan.buckets[i] for i in self._sent], changes)
        return Updates(dict(zip(self._sent, packed, strict=True)), rows)

    def update_specs(self) -> Updates:
        """The specs of what `pack_updates` returns."""
        held = {i: self._plan.buckets[i] for i in self._sent}
        buckets = {i: tf.TensorSpec(b.shape, b.dtype) for i, b in held.items()}
        rows = {}
        for i, table in self._plan.tables.items():
            bucket = self._plan.buckets[table.storage.parts[0].bucket]
            if self._aggregation.optimizer.by_rows and bucket.kind.treatment.trained:
                rows[i] = tf.TensorSpec([None, *bucket.shape[1:]], bucket.dtype)
        return Updates(buckets, rows)

    def initial_residuals(self) -> dict[int, tuple]:
        """Bucket -> what a worker's codec remembers before the first step.

        The tensors are made on the caller's device. Every bucket that a step sends has an entry.
        """
        return {i: self._channel(i).initial_state() for i in self._sent}

    def shared(self, updates: Updates, share: tf.Tensor) -> Updates:
        """Updates times a worker's share of its round.

        Args:
          updates: of `pack_updates`.
          share: float32 scalar; 0 makes zeros of any value, infinite or not.
        """

        def times(t):
            return tf.math.multiply_no_nan(t, tf.cast(share, t.dtype))

        def averaged(i):
            return self._plan.buckets[i].kind.treatment.trained or self._aggregation.takes(i)

        buckets = {i: times(t) if averaged(i) else t for i, t in updates.buckets.items()}
        return Updates(buckets, {i: times(t) for i, t in updates.rows.items()})

    def encode(
        self,
        updates: Updates,
        ids: Mapping[int, Ids],
        residuals: Mapping[int, tuple],
        seed: tf.Tensor,
        finite: tf.Tensor,
    ) -> tuple[dict[int, tuple], dict[int, SentRows], dict[int, tuple]]:
        """Turns a step's updates into payloads, on the worker.

        Args:
          updates: of `pack_updates`.
          ids: table -> the ids whose rows the step looked up.
          residuals: of `initial_residuals`, or of the step before.
          seed: int32 [2], another one for each step.
          finite: bool scalar. If it is false, the residuals stay as they were, because the
            servers will skip what is sent.

        Returns:
          (payloads, rows, residuals); see `Push`.
        """
        payloads, after = {}, {}
        for i, tensor in updates.buckets.items():
            before = residuals[i]
            own_seed = seed + tf.constant([0, 100 * i])
            payloads[i], new = self._channel(i).encode(tensor, before, own_seed)
            if self._store.loss_scale is not None:
                new = tf.nest.map_structure(lambda n, o: tf.where(finite, n, o), new, before)
            after[i] = new
        rows: dict[int, SentRows] = {}
        for i, gradient in updates.rows.items():
            rows |= self._plan.tables[i].encode(gradient, ids[i], seed)
        return payloads, rows, after

    # From the worker to the servers.

    def push(
        self,
        handles: ServerHandles,
        sent: Push,
        learning_rate: tf.Tensor,
        expected: tf.Tensor | None = None,
        reads: Sequence[tuple[int, tf.Tensor]] = (),
    ) -> Receipt:
        """Sends a step's updates to the servers, which take them in.

        On each ps, the update of all its buckets is one atomic step: it waits for the whole push
        of this worker, takes the ps's lock, and reads, computes and writes under it.

        Args:
          handles: of `handles`.
          sent: on the caller's device.
          learning_rate: float32 scalar.
          expected: int32 scalar, the number of pushes in a round; None outside of rounds.
          reads: (ps, tensor) of rows that are read before in the same function. TensorFlow lets no
            update of a table overtake such a read, so the lock is not taken before it.
        """
        receipt = Receipt(tf.constant(0, tf.int64), tf.constant(False))
        for p in range(self._plan.num_ps):
            mine, told, arrived = self._bring(p, sent, learning_rate, expected)
            with tf.device(ps_device(p)):
                self._write_state(handles, mine)
                if not (self._aggregation.needs(p) or mine.rows or p == 0):
                    continue
                waits = arrived + [t for ps, t in reads if ps == p]
                one = self._locked_update(p, handles, mine, told, waits)
                messages, restore_receipt = coalesce(one)
            if p == 0:
                receipt = Receipt(*restore_receipt(messages))
        return tf.nest.map_structure(tf.identity, receipt)

    def _bring(
        self, p: int, sent: Push, learning_rate: tf.Tensor, expected: tf.Tensor | None
    ) -> tuple[Push, _Told, list[tf.Tensor]]:
        """(what concerns a ps of a push, on this ps; what else the ps is told; what arrives there).

        All that is small shares a message, because a message has a price of its own.
        """
        held = {i for i, b in enumerate(self._plan.buckets) if b.ps == p}
        payloads = {i: one for i, one in sent.payloads.items() if i in held}
        rows = {i: one for i, one in sent.rows.items() if i in held}
        told = _Told(learning_rate, sent.versions[p], expected)
        scalars = [
            tf.convert_to_tensor(t)
            for t in (*told, sent.live, sent.finite, sent.loss_scale)
            if t is not None
        ]
        messages, restore = coalesce([*tf.nest.flatten(payloads), *scalars])
        with tf.device(ps_device(p)):
            # Here, before any branch: what a branch takes in, TensorFlow asks for where it comes
            # from, and the worker's answer would wait behind all that is under way.
            messages, rows = tf.nest.map_structure(tf.identity, (messages, rows))
            tensors = restore(messages)
            flat, there = tensors[: -len(scalars)], iter(tensors[-len(scalars) :])
            payloads = tf.nest.pack_sequence_as(payloads, flat)
            told = _Told(*(None if t is None else next(there) for t in told))
        mine = sent._replace(payloads=payloads, rows=rows)
        mine = mine._replace(live=next(there), finite=next(there), loss_scale=next(there))
        return mine, told, tf.nest.flatten((messages, rows))

    # On a ps; the caller has entered its device.

    def _write_state(self, handles: ServerHandles, mine: Push) -> None:
        """Writes the model's state that needs no lock."""
        for i, payload in mine.payloads.items():
            bucket = self._plan.buckets[i]
            if bucket.kind.treatment.state and not self._aggregation.takes(i):
                value = self._channel(i).decode(payload)
                handle = handles.store.values[i]
                bucket.kind.treatment.write(handle, bucket.dtype, bucket.shape, value, mine.live)

    def _locked_update(
        self, p: int, handles: ServerHandles, mine: Push, told: _Told, waits: list[tf.Tensor]
    ) -> Receipt:
        """Everything that a ps does with a push under its lock.

        Args:
          p: index of the ps.
          handles: of the step.
          mine: what concerns the ps.
          told: what else the ps is told.
          waits: tensors without which the lock is not taken.
        """
        with tf.control_dependencies(waits):
            lock = tf.raw_ops.MutexLock(mutex=handles.store.locks[p])
        with tf.control_dependencies([lock]):
            version = read(handles.store.versions[p], tf.int64, ())
            missed = version - told.version
            scale = 1 / tf.maximum(1.0, tf.cast(missed, tf.float32)) if self._scaled else None
            rate, applies = Rate(told.learning_rate, scale), tf.logical_and(mine.live, mine.finite)
            arrived = Arrived(mine.payloads, mine.rows, rate, applies, told.expected)
            written, updated = self._aggregation.update(p, handles, arrived)
            written += write([handles.store.versions[p]], [version + tf.cast(updated, tf.int64)])
            if p == 0:
                written += self._update_loss_scale(handles, mine, updated)
        with tf.control_dependencies(written):
            # Or the lock of one ps would be held until that of the ps before is free.
            _tf_tracing.independent(tf.raw_ops.ConsumeMutexLock(mutex_lock=lock))
        return Receipt(missed, updated)

    def _update_loss_scale(
        self, handles: ServerHandles, mine: Push, updated: tf.Tensor
    ) -> list[tf.Operation]:
        law, held = self._store.loss_scale, handles.store.loss_scale
        if law is None or held is None:
            return []
        scale, good = read(held.scale, tf.float32, ()), read(held.good_steps, tf.int32, ())
        new = law.update(scale, good, mine.loss_scale, mine.finite)
        # In rounds, the steps that went well are counted with the update.
        counts = tf.logical_and(mine.live, tf.logical_or(updated, tf.logical_not(mine.finite)))
        kept = [tf.where(counts, n, o) for n, o in zip(new, (scale, good), strict=True)]
        return write(held, kept)

    def _channel(self, i: int) -> Channel:
        return self._aggregation.optimizer.channel(i)
