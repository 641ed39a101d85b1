"""What a parameter server does with what a worker has sent, while it holds its lock.

`Applied` lets the optimizer update at once. `Summed` adds the pushes of a round up
and lets it update with their sum when the last one has come.
"""

import itertools

import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.store.bucket_update import CompiledOptimizer
from tfps.store.buckets import Bucket
from tfps.store.handles import CountHandles, RoundHandles, ServerHandles
from tfps.store.resources import read, write


class Applied:
    """A push is applied as it comes."""

    def __init__(self, optimizer: CompiledOptimizer, skips: bool):
        """Keeps its arguments.

        Args:
          optimizer: whose update.
          skips: whether some pushes will not be live; an update then has a branch.
        """
        self.optimizer = optimizer
        self._skips = skips or optimizer.store.loss_scale is not None
        self._plan = optimizer.store.plan

    def handles(self) -> ServerHandles:
        """The resource handles of everything on the servers, arguments of every step."""
        return self.optimizer.store.handles()._replace(outer=self.optimizer.outer_handles())

    def clear(self) -> None:
        """Forgets what is not applied yet; here, there is nothing."""

    def needs(self, p: int) -> bool:
        """Whether a ps has anything to update."""
        return bool(self.optimizer.trained(p))

    def takes(self, i: int) -> bool:
        """Whether a bucket of the model's state is updated here, under the lock."""
        del i
        return False

    def update(self, p, handles, payloads, rows, learning_rate, scale, applies, expected):
        """Takes in one push; called on the ps, which holds its lock.

        Args:
          p: index of the ps.
          handles: of `handles`.
          payloads: bucket -> payload.
          rows: bucket -> (`Table`, rows and payload) of one that is a table's.
          learning_rate: float32 scalar.
          scale: float32 scalar by which the rate is multiplied, or None.
          applies: bool scalar, whether the push counts.
          expected: int32 scalar, pushes in a round.

        Returns:
          (what writes, bool scalar: whether there was an update).
        """
        del expected
        optimizer = self.optimizer
        guard = applies if self._skips else None
        written = []
        if mine := optimizer.trained(p):
            arrived, decoders = {}, {}
            for i in mine:
                if i in rows:
                    # Every row takes part, with a gradient of zero if not looked up.
                    where, gradients = rows[i][0].decode(rows[i][1])
                    shape = self._plan.buckets[i].shape
                    arrived[i] = tf.scatter_nd(where[:, None], gradients, shape)
                elif optimizer.channel(i).codec.jit:
                    arrived[i], decoders[i] = payloads[i], optimizer.channel(i).decode
                else:
                    arrived[i] = optimizer.channel(i).decode(payloads[i])
            written += optimizer.apply(p, handles, arrived, decoders, learning_rate, scale, guard)
        for i, (table, piece) in rows.items():
            if i in optimizer.store.row_optimizers:
                written += optimizer.apply_rows(
                    i, handles, *table.decode(piece), learning_rate, scale, guard
                )
        return written, applies


class Summed(Applied):
    """The pushes of a round are added up; the last one of it brings the update.

    Each comes multiplied by its share, so the sum is the weighted mean.
    """

    def __init__(self, optimizer: CompiledOptimizer):
        """Makes a sum for every bucket on its ps: as much memory again as the parameters."""
        super().__init__(optimizer, skips=False)
        self._sums, self._touched = {}, {}
        for i, bucket in enumerate(self._plan.buckets):
            if not (bucket.kind.treatment.trained or _is_averaged(bucket)):
                continue
            with tf.device(ps_device(bucket.ps)):
                self._sums[i] = _zeros(bucket.shape, bucket.dtype)
                if optimizer.by_rows and i in optimizer.store.row_optimizers:
                    self._touched[i] = _zeros(bucket.shape[:1], tf.bool)
        self._counts = []
        for p in range(self._plan.num_ps):
            with tf.device(ps_device(p)):
                self._counts.append([_zeros([], tf.int32), _zeros([], tf.int32)])

    def handles(self) -> ServerHandles:
        open_ = RoundHandles(
            sums={i: v.handle for i, v in self._sums.items()},
            touched={i: v.handle for i, v in self._touched.items()},
            counts=[CountHandles(*(v.handle for v in pair)) for pair in self._counts],
        )
        return super().handles()._replace(round=open_)

    def clear(self):
        counts = itertools.chain.from_iterable(self._counts)
        for v in [*self._sums.values(), *self._touched.values(), *counts]:
            with tf.device(v.device):
                v.assign(tf.zeros(v.shape, v.dtype))

    def needs(self, p):
        return any(self._plan.buckets[i].ps == p for i in self._sums)

    def takes(self, i):
        return i in self._sums

    def update(self, p, handles, payloads, rows, learning_rate, scale, applies, expected):
        optimizer = self.optimizer
        mine = [i for i in self._sums if self._plan.buckets[i].ps == p]
        added = []
        for i in mine:
            if i in rows:
                where, gradients = rows[i][0].decode(rows[i][1])
                # A worker whose gradients overflowed has touched nothing.
                count = tf.size(where) * tf.cast(applies, tf.int32)
                where, gradients = where[:count], gradients[:count]
                added.append(
                    tf.raw_ops.ResourceScatterAdd(
                        resource=handles.round.sums[i], indices=where, updates=gradients
                    )
                )
                if i in self._touched:
                    added.append(_mark(handles.round.touched[i], where, True))
            elif i in payloads:
                value = optimizer.channel(i).decode(payloads[i])
                if optimizer.store.loss_scale is not None:
                    # Of a worker whose gradients overflowed, a codec sends what it still had.
                    value = tf.where(applies, value, tf.zeros_like(value))
                added.append(
                    tf.raw_ops.AssignAddVariableOp(resource=handles.round.sums[i], value=value)
                )
        with tf.control_dependencies(added):
            arrived, good = (read(h, tf.int32, ()) for h in handles.round.counts[p])
            arrived, good = arrived + 1, good + tf.cast(applies, tf.int32)
            complete = tf.equal(arrived, expected)

            def finish():
                # Where every gradient of the round overflowed, nothing is applied.
                return tf.cond(
                    good > 0,
                    lambda: self._finished(p, mine, handles, learning_rate, scale),
                    lambda: tf.constant(False),
                )

            updated = tf.cond(complete, finish, lambda: tf.constant(False))
        with tf.control_dependencies([updated]):
            again = [tf.where(complete, 0, n) for n in (arrived, good)]
            return write(handles.round.counts[p], again), updated

    def _finished(self, p, mine, handles, learning_rate, scale):
        buckets, optimizer = self._plan.buckets, self.optimizer

        def total(i):
            return read(handles.round.sums[i], buckets[i].dtype, buckets[i].shape)

        written = []
        if trained := optimizer.trained(p):
            sums = {i: total(i) for i in trained}
            written += optimizer.apply(p, handles, sums, {}, learning_rate, scale, None)
        for i in mine:
            if _is_averaged(buckets[i]):
                written += write([handles.store.values[i]], [total(i)])
        for i in [i for i in mine if i in self._touched]:
            mask = read(handles.round.touched[i], tf.bool, buckets[i].shape[:1])
            where = tf.where(mask)[:, 0]
            gradients = tf.gather(total(i), where)
            rows = optimizer.apply_rows(i, handles, where, gradients, learning_rate, scale, None)
            with tf.control_dependencies(rows):
                zeros = tf.zeros_like(gradients)
                written.append(
                    tf.raw_ops.ResourceScatterUpdate(
                        resource=handles.round.sums[i], indices=where, updates=zeros
                    )
                )
                written.append(_mark(handles.round.touched[i], where, False))
        with tf.control_dependencies(written):
            whole = [i for i in mine if i not in self._touched]
            zeros = [tf.zeros(buckets[i].shape, buckets[i].dtype) for i in whole]
            cleared = write([handles.round.sums[i] for i in whole], zeros)
        with tf.control_dependencies(cleared):
            return tf.constant(True)


def _zeros(shape, dtype) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False)


def _mark(handle, where, value: bool) -> tf.Operation:
    return tf.raw_ops.ResourceScatterUpdate(
        resource=handle, indices=where, updates=tf.fill(tf.shape(where), value)
    )


def _is_averaged(bucket: Bucket) -> bool:
    return bucket.kind.treatment.averaged(bucket.dtype)
