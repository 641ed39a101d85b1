"""What a step writes to the servers.

Every method takes the resource handles as arguments, never as captures: a step
that was traced once goes on after a variable was replaced.
"""

from typing import NamedTuple

import tensorflow as tf

from tfps import layout
from tfps.devices import ps_device
from tfps.plan import LAST, SUM, state_treatment
from tfps.store import ParameterStore, read, write
from tfps.tables import Ids
from tfps.wire import coalesce


class Push(NamedTuple):
    """What a step sends to the servers.

    Attributes:
      payloads: per bucket; () for one that it leaves alone.
      rows: table -> what it sends to each of its parts.
      version: of the parameters with which it was computed.
      live: bool scalar; false: it is none, and the servers do nothing.
      finite: bool scalar; false: gradients overflowed (loss scaling), and the
        servers only note that.
      loss_scale: float32 scalar that the worker used.
    """

    payloads: list
    rows: dict[int, list]
    version: tf.Tensor
    live: tf.Tensor
    finite: tf.Tensor
    loss_scale: tf.Tensor


class Pusher:
    """Brings a step's updates from a worker into a store, inside of `tf.function`s."""

    def __init__(self, store: ParameterStore, skips: bool = False, jit_compile: bool = True):
        """Keeps its arguments.

        Args:
          store: with the variables.
          skips: whether some pushes will not be live; an update then has a branch.
          jit_compile: compile the servers' updates with XLA: one fused pass over
            a bucket where op by op it would be dozens.
        """
        self._store = store
        self._plan = store.plan
        self._skips = skips or store.loss_scale is not None
        self._jit_compile = jit_compile

    def pack_updates(self, gradients, old_state, new_state) -> tuple[list, dict[int, tf.Tensor]]:
        """What a step is to send, before codecs.

        Args:
          gradients: per trainable variable, a tensor or None.
          old_state, new_state: per state variable, the pulled and the new value
            (None if untouched).

        Returns:
          (a tensor per bucket, None for those that it leaves alone; table -> the
          gradients of its rows).
        """
        rows = {i: gradients[i] for i in self._plan.tables if gradients[i] is not None}
        changes = {i: g for i, g in enumerate(gradients) if g is not None and i not in rows}
        for i, (old, new) in enumerate(
            zip(old_state, new_state, strict=True), start=self._plan.num_trainable
        ):
            if new is not None:
                kind = state_treatment(self._plan.variables[i])
                changes[i] = new - old if kind == SUM else new
        sent = [self._plan.sends(i) for i in range(len(self._plan.buckets))]
        packed = iter(
            layout.pack([b for b, s in zip(self._plan.buckets, sent, strict=True) if s], changes)
        )
        return [next(packed) if s else None for s in sent], rows

    def initial_residuals(self) -> list[tuple]:
        """What the codecs of a worker remember, before its first step; made on its device."""
        return [
            c.initial_state() if self._plan.sends(i) else () for i, c in enumerate(self._plan.up)
        ]

    def encode(self, updates, ids: dict[int, Ids], residuals, seed, finite):
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
        buckets, row_gradients = updates
        payloads, after = [], []
        for i, (tensor, residual) in enumerate(zip(buckets, residuals, strict=True)):
            payload = ()
            if tensor is not None:
                payload, new = self._plan.up[i].encode(
                    tensor, residual, seed + tf.constant([0, 100 * i])
                )
                if self._store.loss_scale is not None:
                    new = tf.nest.map_structure(lambda n, o: tf.where(finite, n, o), new, residual)
                residual = new
            payloads.append(payload)
            after.append(residual)
        rows = {
            i: self._plan.tables[i].encode(gradient, ids[i], seed)
            for i, gradient in row_gradients.items()
        }
        return payloads, rows, after

    def push(self, handles: dict, sent: Push, learning_rate) -> tf.Tensor:
        """Sends a step's updates to the servers and applies them there.

        On each ps, the optimizer's update of all its buckets is one atomic
        step: it waits for the whole push of this worker, takes the ps's lock,
        and reads, computes and writes under it.

        Args:
          handles: of this store.
          sent: on the caller's device.
          learning_rate: float32 scalar.

        Returns:
          int64 scalar, the push's staleness: how many others were applied since
          the parameters were pulled with which it was computed.
        """
        missed = tf.constant(0, tf.int64)
        for p in range(self._plan.num_ps):
            mine = [i for i, b in enumerate(self._plan.buckets) if b.ps == p and sent.payloads[i]]
            messages, restore = coalesce(tf.nest.flatten([sent.payloads[i] for i in mine]))
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
                payloads = dict(
                    zip(
                        mine,
                        tf.nest.pack_sequence_as(
                            [sent.payloads[i] for i in mine], restore(arrived[0])
                        ),
                        strict=True,
                    )
                )
                rows = {i: (table, arrived[1][i]) for i, (table, _) in rows.items()}
                self._write_state(handles, payloads, sent.live)
                if not (self._store.trained[p] or rows or p == 0):
                    continue
                staleness = self._locked_update(
                    p, handles, tf.nest.flatten(arrived), payloads, rows, sent, learning_rate
                )
            if p == 0:
                missed = staleness
        return tf.identity(missed)

    def _write_state(self, handles, payloads, live) -> None:
        for i, payload in payloads.items():
            bucket, handle = self._plan.buckets[i], handles["values"][i]
            if bucket.kind.treatment not in (LAST, SUM):
                continue
            value = self._plan.up[i].decode(payload)
            if bucket.kind.treatment == LAST:
                value = tf.where(live, value, read(handle, bucket.dtype, bucket.shape))
                tf.raw_ops.AssignVariableOp(resource=handle, value=value)
            else:
                value = tf.where(live, value, tf.zeros_like(value))
                tf.raw_ops.AssignAddVariableOp(resource=handle, value=value)

    def _locked_update(self, p, handles, arrived, payloads, rows, sent, learning_rate):
        with tf.control_dependencies(arrived):
            lock = tf.raw_ops.MutexLock(mutex=handles["locks"][p])
        written, staleness = [], None
        applies = tf.logical_and(sent.live, sent.finite)
        with tf.control_dependencies([lock]):
            gradients = {i: payloads[i] for i in self._store.trained[p] if i in payloads}
            if self._store.trained[p]:
                written += self._apply(p, handles, gradients, rows, learning_rate, applies)
            for i, (table, piece) in rows.items():
                if i in self._store.row_optimizers:
                    written += self._apply_rows(
                        i, handles, *table.decode(piece), learning_rate, applies
                    )
            version = read(handles["versions"][p], tf.int64, ())
            written += write([handles["versions"][p]], [version + tf.cast(applies, tf.int64)])
            if p == 0:
                staleness = version - sent.version
                if self._store.loss_scale:
                    scale, good = (
                        read(h, d, ())
                        for h, d in zip(handles["loss_scale"], (tf.float32, tf.int32), strict=True)
                    )
                    new = self._store.loss_scale.update(scale, good, sent.loss_scale, sent.finite)
                    new = [
                        tf.where(sent.live, n, o) for n, o in zip(new, (scale, good), strict=True)
                    ]
                    written += write(handles["loss_scale"], new)
        with tf.control_dependencies(written):
            tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
        return staleness

    def _apply(self, p, handles, payloads, rows, learning_rate, applies) -> list[tf.Operation]:
        """The optimizer's update of whole buckets."""
        optimizer, mine = self._store.optimizers[p], self._store.trained[p]
        value_handles = [handles["values"][i] for i in mine]
        values = [
            read(h, self._plan.buckets[i].dtype, self._plan.buckets[i].shape)
            for h, i in zip(value_handles, mine, strict=True)
        ]
        state = [
            read(h, v.dtype, v.shape)
            for h, v in zip(handles["state"][p], optimizer.state, strict=True)
        ]

        def gradient(i):
            if i not in rows:
                return payloads[i]
            table, piece = rows[i]
            where, gradients = table.decode(piece)
            # Every row takes part in the update, with a gradient of zero if not looked up.
            return tf.scatter_nd(where[:, None], gradients, self._plan.buckets[i].shape)

        # Payloads are decoded inside, in the same pass over memory as the update.
        decoded_inside = [i not in rows and self._plan.up[i].codec.jit for i in mine]
        arrived = [gradient(i) for i in mine]
        arrived = [
            g if inside or i in rows else self._plan.up[i].decode(g)
            for g, inside, i in zip(arrived, decoded_inside, mine, strict=True)
        ]

        @tf.function(jit_compile=self._jit_compile, autograph=False)
        def apply(values, state, arrived, learning_rate, applies):
            gradients = [
                self._plan.up[i].decode(g) if inside else g
                for g, inside, i in zip(arrived, decoded_inside, mine, strict=True)
            ]

            def update():
                return optimizer.apply(values, state, gradients, learning_rate)

            return tf.cond(applies, update, lambda: (values, state)) if self._skips else update()

        values, state = apply(values, state, arrived, learning_rate, applies)
        return write([*value_handles, *handles["state"][p]], [*values, *state])

    def _apply_rows(self, i, handles, where, gradients, learning_rate, applies):
        """The optimizer's update of some rows, as if the table had no others."""
        optimizer, bucket = self._store.row_optimizers[i], self._plan.buckets[i]
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
        (new_value,), new_state = optimizer.apply([value], state, [gradients], learning_rate)
        if self._skips:
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
