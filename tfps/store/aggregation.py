"""What the loop of a parameter server does with what a worker has pushed.

`Applied` lets the optimizer update at once. `Summed` adds up the pushes of a round and lets the
optimizer update with their sum when the last one has come.
"""

import abc
import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfps import _tf_resources
from tfps.cluster.devices import ps_device
from tfps.model.server_optimizer import ServerOptimizer
from tfps.store import mailbox
from tfps.store.bucket_update import BucketOptimizer, Rate
from tfps.store.buckets import Bucket
from tfps.store.handles import CountHandles, RoundHandles, ServerHandles
from tfps.store.resources import add_rows, read, write, write_rows
from tfps.store.server_state import (
    AggregationState,
    Layout,
    export_optimizers,
    restore_optimizers,
    spread,
)
from tfps.store.tables import SentRows

# Of queues, whose names no other queue of this process has.
_numbers = itertools.count()


class Arrived(NamedTuple):
    """A push, or what concerns one ps of it, on this ps.

    Attributes:
      payloads: bucket -> what its codec sent.
      rows: bucket of a table -> rows that were sent.
      rate: of the update.
      applies: bool scalar, whether the push counts: its gradients are finite.
      expected: int32 scalar, the number of pushes in a round; 0 outside of rounds.
    """

    payloads: Mapping[int, tuple]
    rows: Mapping[int, SentRows]
    rate: Rate
    applies: tf.Tensor
    expected: tf.Tensor


class Aggregation(abc.ABC):
    """When and with what the servers' optimizer updates.

    The pusher asks `needs` and `takes` and calls `update` while it traces a push, once for each
    ps. The chief calls `clear` between calls, when a run ends in the middle of a round.

    Attributes:
      optimizer: whose update it is.
    """

    def __init__(self, optimizer: BucketOptimizer):
        """Notes what updates.

        Args:
          optimizer: whose update it is.
        """
        self.optimizer = optimizer
        self._plan = optimizer.store.plan
        self._layout = Layout(self._plan)

    def handles(self) -> ServerHandles:
        """The resource handles of everything on the servers, arguments of every step."""
        outer = {p: o.handles for p, o in self.optimizer.outer().items()}
        return self.optimizer.store.handles()._replace(outer=outer)

    def export(self) -> AggregationState:
        """What is on the servers beside the store, as arrays on the chief.

        No worker may push meanwhile.
        """
        outer = export_optimizers(self._layout, self._placed())
        return AggregationState(outer, {}, {}, np.zeros([0, 2], np.int32))

    def restore(self, state: AggregationState) -> None:
        """Writes an exported state to the servers.

        Args:
          state: of an aggregation of the same kind, in whatever way it was laid out.

        Raises:
          ConfigError: the state is of another outer optimizer.
        """
        restore_optimizers(self._layout, self._placed(), state.outer)

    def renew(self, servers: Collection[int]) -> None:
        """Makes what is on some servers anew, with zeros; see `ParameterStore.renew`."""
        for optimizer, mine in self._placed():
            if self._plan.buckets[mine[0]].ps in servers:
                _make_anew([variable.value for variable in optimizer.state])

    def _placed(self) -> list[tuple[ServerOptimizer, list[int]]]:
        return [(o, self.optimizer.trained(p)) for p, o in self.optimizer.outer().items()]

    @abc.abstractmethod
    def clear(self) -> None:
        """Forgets pushes that came and were not applied."""

    @abc.abstractmethod
    def needs(self, p: int) -> bool:
        """Whether a push changes anything on this ps under the lock, if it has no rows."""

    @abc.abstractmethod
    def takes(self, i: int) -> bool:
        """Whether a bucket of the model's state is updated by `update`, under the lock."""

    @abc.abstractmethod
    def update(
        self, p: int, handles: ServerHandles, push: Arrived
    ) -> tuple[list[tf.Operation], tf.Tensor]:
        """Takes in one push. The caller enters the device of the ps and holds its lock.

        Args:
          p: index of the ps.
          handles: of `handles`.
          push: what concerns this ps.

        Returns:
          (the operations that write, bool scalar: whether there was an update).
        """


class Applied(Aggregation):
    """A push is applied as soon as it comes."""

    def clear(self) -> None:
        """Does nothing, because nothing waits."""

    def needs(self, p: int) -> bool:
        return bool(self.optimizer.trained(p))

    def takes(self, i: int) -> bool:
        del i
        return False

    def update(
        self, p: int, handles: ServerHandles, push: Arrived
    ) -> tuple[list[tf.Operation], tf.Tensor]:
        optimizer = self.optimizer
        guard = None if optimizer.store.loss_scale is None else push.applies
        tables = self._plan.of_tables
        written = []
        if mine := optimizer.trained(p):
            arrived, decoders = {}, {}
            for i in mine:
                if i in push.rows:
                    # Every row takes part, with a gradient of zero if it was not looked up.
                    table, shape = tables[i], self._plan.buckets[i].shape
                    sent = push.rows[i]
                    where, _ = table.storage.insert(handles, table.part(i), sent.ids)
                    gradients = table.decode(sent)
                    arrived[i] = tf.scatter_nd(where[:, None], gradients, shape)
                elif optimizer.channel(i).codec.jit:
                    arrived[i], decoders[i] = push.payloads[i], optimizer.channel(i).decode
                else:
                    arrived[i] = optimizer.channel(i).decode(push.payloads[i])
            written += optimizer.apply(p, handles, arrived, decoders, push.rate, guard)
        for i, rows in push.rows.items():
            if self._plan.buckets[i].kind.treatment.by_rows:
                gradients = tables[i].decode(rows)
                written += optimizer.apply_rows(i, handles, rows.ids, gradients, push.rate, guard)
        return written, push.applies


class Counts(NamedTuple):
    """The counts of a ps's open round; int32 scalars.

    Attributes:
      arrived: pushes that have come.
      good: those of them whose gradients did not overflow.
    """

    arrived: tf.Variable
    good: tf.Variable


class Summed(Aggregation):
    """The pushes of a round are added up; the last one of the round brings the update.

    Each push comes multiplied by its worker's share, so the sum is the weighted mean.

    Attributes:
      sums: bucket -> the sum, a variable of the bucket's shape.
      touched: bucket that is updated by rows -> bool [rows], which rows were pushed.
      waiting: bucket of a table that grows -> the queue of the round's pushes, in place of a sum:
        an id gets a row with the update and not before.
      counts: per ps.
    """

    def __init__(self, optimizer: BucketOptimizer):
        """Creates a sum for every bucket on its ps: as much memory again as the parameters.

        Args:
          optimizer: whose update it is.
        """
        super().__init__(optimizer)
        self.sums: dict[int, tf.Variable] = {}
        self.touched: dict[int, tf.Variable] = {}
        self.waiting: dict[int, tf.Tensor] = {}
        for i, bucket in enumerate(self._plan.buckets):
            if not (bucket.kind.treatment.trained or _is_averaged(bucket)):
                continue
            if i in self._plan.growing:
                self.waiting[i] = _queue(bucket)
                continue
            with tf.device(ps_device(bucket.ps)):
                self.sums[i] = _zeros(self._shape(i), bucket.dtype)
                if optimizer.by_rows and bucket.kind.treatment.by_rows:
                    self.touched[i] = _zeros(bucket.shape[:1], tf.bool)
        self.counts = []
        for p in range(self._plan.num_ps):
            with tf.device(ps_device(p)):
                self.counts.append(Counts(_zeros([], tf.int32), _zeros([], tf.int32)))

    def handles(self) -> ServerHandles:
        open_round = RoundHandles(
            sums={i: v.handle for i, v in self.sums.items()},
            touched={i: v.handle for i, v in self.touched.items()},
            waiting=dict(self.waiting),
            counts=[CountHandles(*(v.handle for v in pair)) for pair in self.counts],
        )
        return super().handles()._replace(round=open_round)

    def clear(self) -> None:
        counts = [v for pair in self.counts for v in pair]
        for v in [*self.sums.values(), *self.touched.values(), *counts]:
            with tf.device(v.device):
                v.assign(tf.zeros(v.shape, v.dtype))
        for i, queue in self.waiting.items():
            ps = self._plan.buckets[i].ps
            if mailbox.length(ps, queue):
                mailbox.delete(ps, queue)
                self.waiting[i] = _queue(self._plan.buckets[i])

    def renew(self, servers: Collection[int]) -> None:
        super().renew(servers)
        self._empty(servers)
        by_bucket = [*self.sums.items(), *self.touched.items()]
        mine = [v for i, v in by_bucket if self._plan.buckets[i].ps in servers]
        _make_anew([*mine, *(v for p in servers for v in self.counts[p])])

    def export(self) -> AggregationState:
        def arrays(variables):
            return self._layout.whole((i, v.numpy()) for i, v in variables.items())

        counts = np.array([[v.numpy() for v in pair] for pair in self.counts])
        sums = self._layout.whole(
            (i, v.numpy()[0] if self.optimizer.moves(i) else v.numpy())
            for i, v in self.sums.items()
        )
        touched = arrays(self.touched)
        return super().export()._replace(sums=sums, touched=touched, counts=counts)

    def restore(self, state: AggregationState) -> None:
        super().restore(state)
        if not len(state.counts):  # Of a cut between rounds: none is open.
            self.clear()
            return
        for variables, arrays in ((self.sums, state.sums), (self.touched, state.touched)):
            for i, v in variables.items():
                part = self._layout.part(i, arrays)
                # A round that goes on elsewhere goes on without what its steps have assigned.
                v.assign(np.stack([part, 0 * part]) if self._is_sum_of_both(i, v) else part)
        counts = spread(state.counts, self._plan.num_ps)
        for pair, numbers in zip(self.counts, counts, strict=True):
            for v, number in zip(pair, numbers, strict=True):
                v.assign(number)

    def needs(self, p: int) -> bool:
        return bool(self._mine(p) or self._growing(p))

    def takes(self, i: int) -> bool:
        return i in self.sums or i in self.waiting

    def update(
        self, p: int, handles: ServerHandles, push: Arrived
    ) -> tuple[list[tf.Operation], tf.Tensor]:
        with tf.control_dependencies(self._add(p, handles, push)):
            counts = handles.round.counts[p]
            assert counts is not None
            arrived, good = (read(h, tf.int32, ()) for h in counts)
            arrived, good = arrived + 1, good + tf.cast(push.applies, tf.int32)
            complete = tf.equal(arrived, push.expected)

            def finish():
                # Where every gradient of the round overflowed, nothing is applied.
                return tf.cond(
                    good > 0,
                    lambda: self._finished(p, handles, push.rate),
                    lambda: tf.constant(False),
                )

            updated = tf.cond(complete, finish, lambda: tf.constant(False))
        with tf.control_dependencies([updated]):
            again = [tf.where(complete, 0, n) for n in (arrived, good)]
            return write(counts, again), updated

    def _empty(self, servers: Collection[int]) -> None:
        """Lets queues of some servers be new ones."""
        for i in self.waiting:
            if self._plan.buckets[i].ps in servers:
                self.waiting[i] = _queue(self._plan.buckets[i])

    def _growing(self, p: int) -> list[int]:
        return [i for i in self.waiting if self._plan.buckets[i].ps == p]

    def _shape(self, i: int) -> tuple[int, ...]:
        """The shape of a bucket's sum."""
        shape = self._plan.buckets[i].shape
        return (2, *shape) if self.optimizer.moves(i) else shape

    def _is_sum_of_both(self, i: int, variable: tf.Variable) -> bool:
        return self.optimizer.moves(i) and variable is self.sums.get(i)

    def _mine(self, p: int) -> list[int]:
        return [i for i in self.sums if self._plan.buckets[i].ps == p]

    def _add(self, p: int, handles: ServerHandles, push: Arrived) -> list[tf.Operation]:
        """Adds a push to the sums."""
        optimizer, added = self.optimizer, []
        for i in self._growing(p):
            if i in push.rows:
                letter = self._applied_rows(i, push)
                queue = handles.round.waiting[i]
                added.append(tf.raw_ops.QueueEnqueueV2(handle=queue, components=letter))
        for i in self._mine(p):
            if i in push.rows:
                added += self._add_rows(handles, i, push)
            elif i in push.payloads:
                value = optimizer.channel(i).decode(push.payloads[i])
                if optimizer.store.loss_scale is not None:
                    # A codec with error feedback sends what it still had, even if the gradients
                    # overflowed.
                    value = tf.where(push.applies, value, tf.zeros_like(value))
                added.append(
                    tf.raw_ops.AssignAddVariableOp(resource=handles.round.sums[i], value=value)
                )
        return added

    def _applied_rows(self, i: int, push: Arrived) -> list[tf.Tensor]:
        """[ids, gradients] of a push; of a worker whose gradients overflowed, none."""
        sent = push.rows[i]
        count = tf.size(sent.ids) * tf.cast(push.applies, tf.int32)
        return [sent.ids[:count], self._plan.of_tables[i].decode(sent)[:count]]

    def _add_rows(self, handles: ServerHandles, i: int, push: Arrived) -> list[tf.Operation]:
        table = self._plan.of_tables[i]
        ids, gradients = self._applied_rows(i, push)
        where, _ = table.storage.insert(handles, table.part(i), ids)
        added = [add_rows(handles.round.sums[i], where, gradients)]
        if i in self.touched:
            added.append(_mark(handles.round.touched[i], where, True))
        return added

    def _finish_growing(self, handles: ServerHandles, i: int, rate: Rate) -> list[tf.Operation]:
        """Updates rows of a table that grows with the sums of the round's pushes."""
        bucket, queue = self._plan.buckets[i], handles.round.waiting[i]
        specs = [
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None, *bucket.shape[1:]], bucket.dtype),
        ]

        def one_more(k, *before):
            letter = tf.raw_ops.QueueDequeueV2(
                handle=queue, component_types=[spec.dtype for spec in specs]
            )
            for part, spec in zip(letter, specs, strict=True):
                part.set_shape(spec.shape)
            return k + 1, *(tf.concat(pair, 0) for pair in zip(before, letter, strict=True))

        count = tf.raw_ops.QueueSizeV2(handle=queue)
        none = [tf.zeros([0, *spec.shape[1:]], spec.dtype) for spec in specs]
        _, ids, pushed = tf.while_loop(
            lambda k, *_: k < count,
            one_more,
            [tf.constant(0), *none],
            shape_invariants=[tf.TensorShape([]), *(spec.shape for spec in specs)],
        )
        unique, which = tf.unique(ids)
        gradients = tf.math.unsorted_segment_sum(pushed, which, tf.size(unique))
        return self.optimizer.apply_rows(i, handles, unique, gradients, rate, None)

    def _finished(self, p: int, handles: ServerHandles, rate: Rate) -> tf.Tensor:
        """Updates with the sums, and clears them; true."""
        buckets, optimizer, mine = self._plan.buckets, self.optimizer, self._mine(p)
        totals = handles.round.sums

        def total(i):
            return read(totals[i], buckets[i].dtype, self._shape(i))

        written = []
        if trained := optimizer.trained(p):
            written += optimizer.apply(p, handles, {i: total(i) for i in trained}, {}, rate, None)
        for i in mine:
            if _is_averaged(buckets[i]):
                handle, mean = handles.store.values[i], total(i)
                value = read(handle, buckets[i].dtype, buckets[i].shape)
                treatment = buckets[i].kind.treatment
                written += write([handle], [treatment.moved(value, mean, mean)])
        for i in [i for i in mine if i in self.touched]:
            mask = read(handles.round.touched[i], tf.bool, buckets[i].shape[:1])
            where = tf.where(mask)[:, 0]
            gradients = tf.gather(total(i), where)
            # Rows that are touched by their places are those of a range of ids.
            first = buckets[i].shards[0].begin // math.prod(buckets[i].shape[1:])
            ids = where + tf.constant(first, tf.int64)
            rows = optimizer.apply_rows(i, handles, ids, gradients, rate, None)
            with tf.control_dependencies(rows):
                written.append(write_rows(totals[i], where, tf.zeros_like(gradients)))
                written.append(_mark(handles.round.touched[i], where, False))
        for i in self._growing(p):
            written += self._finish_growing(handles, i, rate)
        with tf.control_dependencies(written):
            whole = [i for i in mine if i not in self.touched]
            zeros = [tf.zeros(self._shape(i), buckets[i].dtype) for i in whole]
            cleared = write([totals[i] for i in whole], zeros)
        with tf.control_dependencies(cleared):
            return tf.constant(True)


def _make_anew(variables: Iterable[tf.Variable]) -> None:
    for variable in variables:
        _tf_resources.renew(variable)
        with tf.device(variable.device):
            variable.assign(tf.zeros(variable.shape, variable.dtype))


def _queue(bucket: Bucket) -> tf.Tensor:
    with tf.device(ps_device(bucket.ps)):
        name = f"tfps_waiting_{next(_numbers)}"
        return tf.raw_ops.FIFOQueueV2(
            component_types=[tf.int64, tf.as_dtype(bucket.dtype)], shared_name=name
        )


def _zeros(shape, dtype) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False)


def _mark(handle, where, value: bool) -> tf.Operation:
    return write_rows(handle, where, tf.fill(tf.shape(where), value))


def _is_averaged(bucket: Bucket) -> bool:
    return bucket.kind.treatment.averaged(bucket.dtype)
