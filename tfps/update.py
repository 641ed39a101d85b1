"""What a parameter server does with what a worker has sent, while it holds its lock.

`Applied` lets the optimizer update at once. `Summed` adds the pushes of a round up
and lets it update with their sum when the last one has come.
"""

import itertools

import keras
import tensorflow as tf

from tfps import _keras
from tfps.devices import ps_device
from tfps.optimizers import ServerOptimizer
from tfps.plan import LAST, ROWS, TRAIN
from tfps.store import ParameterStore, read, write
from tfps.wire import Channel


class CompiledOptimizer:
    """The model's own optimizer, as the store keeps it: of whole buckets and of rows.

    Attributes:
      by_rows: whether what arrives of a table is rows.
    """

    by_rows = True

    def __init__(self, store: ParameterStore, jit_compile: bool):
        """Keeps its arguments.

        Args:
          store: with the variables.
          jit_compile: compile the update with XLA: one fused pass over a bucket
            where op by op it would be dozens.
        """
        self.store = store
        self._plan = store.plan
        self._jit_compile = jit_compile

    def handles(self) -> dict:
        """Resource handles, besides those of the store."""
        return {}

    def trained(self, p: int) -> list[int]:
        """The buckets of a ps that are updated as a whole."""
        return self.store.trained[p]

    def sends(self, i: int) -> bool:
        """Whether a step pushes the bucket as a whole."""
        return self._plan.sends(i)

    def channel(self, i: int) -> Channel:
        """How what is pushed of a bucket travels."""
        return self._plan.up[i]

    def optimizer(self, p: int) -> ServerOptimizer | None:
        return self.store.optimizers[p]

    def state_handles(self, p: int, handles: dict) -> list:
        return handles["state"][p]

    def apply(self, p, handles, arrived, decoders, learning_rate, scale, applies):
        """One update of a ps's buckets.

        Args:
          p: index of the ps.
          handles: of the store and of this.
          arrived: bucket -> gradient, or a payload if there is a decoder for it.
          decoders: bucket -> function. Payloads are decoded in the same pass over
            memory as the update.
          learning_rate: float32 scalar.
          scale: float32 scalar by which the rate is multiplied, or None.
          applies: bool scalar; false leaves everything as it is. None: true.

        Returns:
          What writes.
        """
        optimizer, mine = self.optimizer(p), self.trained(p)
        value_handles = [handles["values"][i] for i in mine]
        state_handles = self.state_handles(p, handles)
        values = [
            read(h, self._plan.buckets[i].dtype, self._plan.buckets[i].shape)
            for h, i in zip(value_handles, mine, strict=True)
        ]
        state = [
            read(h, v.dtype, v.shape) for h, v in zip(state_handles, optimizer.state, strict=True)
        ]

        @tf.function(jit_compile=self._jit_compile, autograph=False)
        def update(values, state, arrived, learning_rate, scale, applies):
            gradients = [
                decoders[i](one) if i in decoders else one
                for i, one in zip(mine, arrived, strict=True)
            ]

            def updated():
                return optimizer.apply(values, state, gradients, learning_rate, scale)

            if applies is None:
                return updated()
            return tf.cond(applies, updated, lambda: (values, state))

        values, state = update(
            values, state, [arrived[i] for i in mine], learning_rate, scale, applies
        )
        return write([*value_handles, *state_handles], [*values, *state])

    def apply_rows(self, i, handles, where, gradients, learning_rate, scale, applies):
        """The update of some rows, as if the table had no others; see `apply`.

        Args:
          i: bucket, of `row_optimizers` of the store.
          where: int [n], the rows.
          gradients: [n, width].
        """
        optimizer, bucket = self.store.row_optimizers[i], self._plan.buckets[i]
        state_handles = handles["row_state"][i]

        def current(handle, dtype, shape, rows):
            if not rows:
                return read(handle, dtype, shape)
            return tf.raw_ops.ResourceGather(
                resource=handle, indices=where, dtype=tf.as_dtype(dtype)
            )

        value = current(handles["values"][i], bucket.dtype, bucket.shape, True)
        state = [
            current(h, v.dtype, v.shape, rows)
            for h, v, rows in zip(state_handles, optimizer.state, optimizer.by_row, strict=True)
        ]
        (new_value,), new_state = optimizer.apply([value], state, [gradients], learning_rate, scale)
        if applies is not None:
            new_value = tf.where(applies, new_value, value)
            new_state = [tf.where(applies, n, o) for n, o in zip(new_state, state, strict=True)]
        return [
            tf.raw_ops.ResourceScatterUpdate(resource=h, indices=where, updates=v)
            if rows
            else tf.raw_ops.AssignVariableOp(resource=h, value=v)
            for h, v, rows in zip(
                [handles["values"][i], *state_handles],
                [new_value, *new_state],
                [True, *optimizer.by_row],
                strict=True,
            )
        ]


class OuterOptimizer(CompiledOptimizer):
    """The optimizer of `LocalSteps`, for the differences that workers send.

    Tables travel whole: a worker trains on all of its copy.
    """

    by_rows = False

    def __init__(
        self, store: ParameterStore, jit_compile: bool, optimizer: keras.optimizers.Optimizer
    ):
        """Makes the optimizer's state on the servers.

        Args:
          store, jit_compile: see `CompiledOptimizer`.
          optimizer: its settings count.
        """
        super().__init__(store, jit_compile)
        self._trained = [
            [i for i, b in enumerate(store.plan.buckets) if b.ps == p and _is_trained(b)]
            for p in range(store.plan.num_ps)
        ]
        self._optimizers = []
        for p, mine in enumerate(self._trained):
            with tf.device(ps_device(p)):
                variables = [store.stored[i] for i in mine]
                built = ServerOptimizer(optimizer, variables, [False] * len(mine)) if mine else None
            if built:
                _keras.mark_remote(built.variables)
            self._optimizers.append(built)

    def handles(self):
        return {"outer": [o.handles if o else [] for o in self._optimizers]}

    def trained(self, p):
        return self._trained[p]

    def sends(self, i):
        return self._plan.sends(i) or _is_trained(self._plan.buckets[i])

    def channel(self, i):
        return self._plan.whole(i)

    def optimizer(self, p):
        return self._optimizers[p]

    def state_handles(self, p, handles):
        return handles["outer"][p]


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

    def handles(self) -> dict:
        """Resource handles of everything on the servers, arguments of every step."""
        return {**self.optimizer.store.handles(), **self.optimizer.handles()}

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
            if not (_is_trained(bucket) or _is_averaged(bucket)):
                continue
            with tf.device(ps_device(bucket.ps)):
                self._sums[i] = _zeros(bucket.shape, bucket.dtype)
                if optimizer.by_rows and i in optimizer.store.row_optimizers:
                    self._touched[i] = _zeros(bucket.shape[:1], tf.bool)
        self._counts = []
        for p in range(self._plan.num_ps):
            with tf.device(ps_device(p)):
                self._counts.append([_zeros([], tf.int32), _zeros([], tf.int32)])

    def handles(self):
        return {
            **super().handles(),
            "sums": {i: v.handle for i, v in self._sums.items()},
            "touched": {i: v.handle for i, v in self._touched.items()},
            "counts": [[v.handle for v in pair] for pair in self._counts],
        }

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
                added.append(
                    tf.raw_ops.ResourceScatterAdd(
                        resource=handles["sums"][i], indices=where, updates=gradients
                    )
                )
                if i in self._touched:
                    added.append(_mark(handles["touched"][i], where, True))
            elif i in payloads:
                channel = optimizer.channel(i)
                added.append(
                    tf.raw_ops.AssignAddVariableOp(
                        resource=handles["sums"][i], value=channel.decode(payloads[i])
                    )
                )
        with tf.control_dependencies(added):
            arrived, good = (read(h, tf.int32, ()) for h in handles["counts"][p])
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
            return write(handles["counts"][p], again), updated

    def _finished(self, p, mine, handles, learning_rate, scale):
        buckets, optimizer = self._plan.buckets, self.optimizer

        def total(i):
            return read(handles["sums"][i], buckets[i].dtype, buckets[i].shape)

        written = []
        if trained := optimizer.trained(p):
            sums = {i: total(i) for i in trained}
            written += optimizer.apply(p, handles, sums, {}, learning_rate, scale, None)
        for i in mine:
            if _is_averaged(buckets[i]):
                written += write([handles["values"][i]], [total(i)])
        for i in [i for i in mine if i in self._touched]:
            mask = read(handles["touched"][i], tf.bool, buckets[i].shape[:1])
            where = tf.where(mask)[:, 0]
            gradients = tf.gather(total(i), where)
            rows = optimizer.apply_rows(i, handles, where, gradients, learning_rate, scale, None)
            with tf.control_dependencies(rows):
                zeros = tf.zeros_like(gradients)
                written.append(
                    tf.raw_ops.ResourceScatterUpdate(
                        resource=handles["sums"][i], indices=where, updates=zeros
                    )
                )
                written.append(_mark(handles["touched"][i], where, False))
        with tf.control_dependencies(written):
            whole = [i for i in mine if i not in self._touched]
            zeros = [tf.zeros(buckets[i].shape, buckets[i].dtype) for i in whole]
            cleared = write([handles["sums"][i] for i in whole], zeros)
        with tf.control_dependencies(cleared):
            return tf.constant(True)


def _zeros(shape, dtype) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False)


def _mark(handle, where, value: bool) -> tf.Operation:
    return tf.raw_ops.ResourceScatterUpdate(
        resource=handle, indices=where, updates=tf.fill(tf.shape(where), value)
    )


def _is_trained(bucket) -> bool:
    return bucket.kind.treatment in (TRAIN, ROWS)


def _is_averaged(bucket) -> bool:
    return bucket.kind.treatment == LAST and tf.as_dtype(bucket.dtype).is_floating
