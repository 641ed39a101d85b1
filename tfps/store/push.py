"""What a step writes to the servers: the worker's side. That of a ps is in `taking`.

Every method takes the resource handles as arguments, never as captures: a step that was traced
once goes on after a variable was replaced.
"""

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.store import letters, mailbox
from tfps.store.aggregation import Aggregation
from tfps.store.buckets import pack
from tfps.store.channel import Channel
from tfps.store.handles import ServerHandles, on_one
from tfps.store.mailbox import Header, SenderHandles
from tfps.store.parameter_store import ParameterStore
from tfps.store.server_loop import Receipt, ServerLoop
from tfps.store.server_state import AggregationState
from tfps.store.tables import Ids, SentRows
from tfps.store.taking import Taker
from tfps.store.views import Views


class Push(NamedTuple):
    """What a step sends to the servers.

    Attributes:
      payloads: bucket -> what its codec sends; only buckets that the step changes.
      rows: bucket of a table -> rows that are sent to it.
      versions: int64 [ps], the number of updates in the parameters with which it was computed.
      unit: int64 scalar, the number of the push; see `mailbox.Header`.
      live: bool scalar, whether this push carries an update. False for the placeholder that a
        worker sends when it has no batch; servers then change nothing, so that the graph needs no
        branch across the network.
      finite: bool scalar. If it is false, gradients overflowed (loss scaling), and the servers
        only note that.
      loss_scale: float32 scalar by which the worker multiplied the loss.
      records: an int64 scalar, how many examples the push has, where a ledger is kept; else empty.
    """

    payloads: dict[int, tuple]
    rows: dict[int, SentRows]
    versions: tf.Tensor
    unit: tf.Tensor
    live: tf.Tensor
    finite: tf.Tensor
    loss_scale: tf.Tensor
    records: list[tf.Tensor] = []  # noqa: RUF012 - Nobody changes it.


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
      ledger: folder in which each ps notes every letter; None if they note nothing.
      plan: of the store.
      views: what the servers know of the workers' copies, which a pull needs of its sender.
    """

    def __init__(
        self,
        store: ParameterStore,
        aggregation: Aggregation,
        scaled: bool = False,
        host: str | None = None,
        ledger: str | None = None,
    ):
        """Reads from the optimizer which buckets a step pushes.

        Args:
          store: with the variables.
          aggregation: what the servers do with a push.
          scaled: whether the learning rate of a push is divided by its staleness.
          host, ledger: see the attributes.
        """
        self.host, self.ledger = host, ledger
        self._store = store
        self.plan = self._plan = store.plan
        self.views = Views(store.plan)
        self._aggregation = aggregation
        self._taker = Taker(store, aggregation, scaled)
        every = range(len(self._plan.buckets))
        self._sent = [i for i in every if aggregation.optimizer.sends(i)]
        self._by_rows = [
            part.bucket
            for table in self._plan.tables.values()
            for part in table.storage.parts
            if aggregation.optimizer.by_rows
        ]
        self._forms: dict[int, letters.Form] = {}
        self._loops: dict[int, ServerLoop] = {}

    def on_host(self) -> contextlib.AbstractContextManager[None]:
        """The scope of the worker's device on which pushes are encoded."""
        return tf.device(self.host) if self.host else contextlib.nullcontext()

    def handles(self) -> ServerHandles:
        """The form of the arguments of every step: resource handles, and what a worker sends with.

        What a worker sends with is its own; see `Actors.handles`.
        """
        sender = mailbox.sender_specs(self.written_to(), self.views.specs())
        return self.server_handles()._replace(sender=sender)

    def server_handles(self) -> ServerHandles:
        """The resource handles of everything on the servers."""
        return self._aggregation.handles()

    def handles_on(self, p: int) -> ServerHandles:
        """The resource handles of what is on one ps, which knows nothing of the others."""
        return on_one(self.server_handles(), p, [b.ps for b in self._plan.buckets])

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

    def records(self, examples: Any) -> list:
        """What `Push.records` is.

        Args:
          examples: int64 scalar, or its spec.
        """
        return [] if self.ledger is None else [examples]

    def pack_updates(
        self,
        gradients: Sequence[tf.Tensor | None],
        old_state: Sequence[tf.Tensor],
        new_state: Sequence[tf.Tensor | None],
        assigned: Mapping[int, tuple[tf.Tensor, tf.Tensor]] | None = None,
    ) -> Updates:
        """What a step is to send, before codecs.

        Args:
          gradients: per trainable variable, a tensor, or None if the loss does not depend on it.
            Those of tables are of rows, unless tables are pushed whole.
          old_state: per state variable, the value that was pulled.
          new_state: per state variable, the value after the step, or None if the model did not
            touch it.
          assigned: trainable variable -> (the value that was pulled, the value that the step
            assigns), for those that the step assigns.
        """
        rows = {}
        if self._aggregation.optimizer.by_rows:
            rows = {i: gradients[i] for i in self._plan.tables if gradients[i] is not None}
        changes = {i: g for i, g in enumerate(gradients) if g is not None and i not in rows}
        states = zip(old_state, new_state, strict=True)
        for i, (old, new) in enumerate(states, start=self._plan.num_trainable):
            if new is not None:
                changes[i] = self._plan.treatments[i].change(old, new)
        moved = {}
        for i, (old, new) in (assigned or {}).items():
            if self._plan.treatments[i].state:
                changes[i] = self._plan.treatments[i].change(old, new)
            else:
                moved[i] = new - old
        packed = pack([self._plan.buckets[i] for i in self._sent], changes)
        updates = Updates(dict(zip(self._sent, packed, strict=True)), rows)
        for i in filter(self._aggregation.optimizer.moves, self._sent):
            bucket = self._plan.buckets[i]
            moves = {s.variable: tf.zeros_like(changes[s.variable]) for s in bucket.shards}
            updates.buckets[i] = tf.stack([updates.buckets[i], *pack([bucket], {**moves, **moved})])
        return updates

    def update_specs(self) -> Updates:
        """The specs of what `pack_updates` returns."""
        held = {i: self._channel(i) for i in self._sent}
        buckets = {i: tf.TensorSpec(c.shape, c.dtype) for i, c in held.items()}
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
        repeats: tf.Tensor | None = None,
    ) -> Receipt:
        """Sends a step's updates to the servers, and waits until these have taken them in.

        On each ps, the update of all its buckets is one atomic step of its loop, which begins when
        the whole push of this worker has arrived.

        Args:
          handles: of `handles`.
          sent: on the caller's device.
          learning_rate: float32 scalar.
          expected: int32 scalar, the number of pushes in a round; None outside of rounds.
          reads: (ps, tensor) of what is read before in the same function. The push is not sent
            before that, so that its update does not overtake the read.
          repeats: int64 scalar, 0 or `mailbox.repeats_of` the ps that have the push already, which
            ignore it; None for 0.

        Returns:
          What ps 0 says.
        """
        sender = handles.sender
        assert sender is not None
        receipt = Receipt(tf.constant(0, tf.int64), tf.constant(False))
        for p in range(self._plan.num_ps):
            letter = self._letter(p, sender, sent, learning_rate, expected, repeats)
            if letter is None:
                continue
            with tf.device(ps_device(p)):
                waits = [t for ps, t in reads if ps == p]
                with tf.control_dependencies(waits):
                    put = mailbox.put(sender.inboxes[p], sender.answers[p], letter)
                with tf.control_dependencies([put]):
                    answer = mailbox.answered(sender.answers[p])
            if p == 0:
                answer = tf.identity(answer)
                receipt = Receipt(answer[0], answer[1] > 0)
        return tf.nest.map_structure(tf.identity, receipt)

    def written_to(self) -> list[int]:
        """The ps that get something of a push. Ps 0 is told of every push."""
        sent = {self._plan.buckets[i].ps for i in [*self._sent, *self._by_rows]}
        every = range(self._plan.num_ps)
        return [p for p in every if p == 0 or p in sent or self._aggregation.needs(p)]

    def _letter(
        self,
        p: int,
        sender: SenderHandles,
        sent: Push,
        learning_rate: tf.Tensor,
        expected: tf.Tensor | None,
        repeats: tf.Tensor | None,
    ) -> list[tf.Tensor] | None:
        """What a ps gets of a push: tensors on that ps, the header's row first; None for nothing.

        All that is small shares a message, because a message has a price of its own.
        """
        if p not in self.written_to():
            return None
        held = {i for i, b in enumerate(self._plan.buckets) if b.ps == p}
        payloads = {i: one for i, one in sent.payloads.items() if i in held}
        rows = {i: one for i, one in sent.rows.items() if i in held}
        header = Header(
            kind=mailbox.PUSH if repeats is None else tf.minimum(repeats, mailbox.REPEAT),
            worker=sender.identity[0],
            life=sender.identity[1],
            unit=sent.unit,
            masked=0 if repeats is None else mailbox.masked(repeats, p),
            version=sent.versions[p],
            live=sent.live,
            finite=sent.finite,
            expected=0 if expected is None else expected,
            learning_rate=learning_rate,
            loss_scale=sent.loss_scale,
        )
        tensors, form = letters.written(p, header.row(), payloads, rows, sent.records)
        self._forms.setdefault(p, form)
        return tensors

    def loop(self, p: int) -> ServerLoop:
        """The loop of a ps, traced once; only after a step that pushes was traced."""
        if p not in self._loops:
            take_in = functools.partial(self._taker.take_in, p, self._forms[p])
            specs = self._forms[p].specs
            self._loops[p] = ServerLoop(p, self.handles_on(p), specs, take_in, self.ledger)
        return self._loops[p]

    def _channel(self, i: int) -> Channel:
        return self._aggregation.optimizer.channel(i)
