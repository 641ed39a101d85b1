"""An optimizer on the parameter servers: the update of a ps, from gradients that are there.

The model's own, `CompiledOptimizer`, or the `OuterOptimizer` of local steps.
"""

import keras
import tensorflow as tf

from tfps import _keras
from tfps.cluster.devices import ps_device
from tfps.model.frozen_adam import Frozen
from tfps.model.server_optimizer import ServerOptimizer
from tfps.store.channel import Channel
from tfps.store.handles import ServerHandles
from tfps.store.parameter_store import ParameterStore
from tfps.store.resources import read, write


class CompiledOptimizer:
    """The model's own optimizer, as the store keeps it: of whole buckets and of rows.

    Attributes:
      by_rows: whether what arrives of a table is rows.
    """

    by_rows = True

    def __init__(
        self,
        store: ParameterStore,
        jit_compile: bool,
        coded: bool = True,
        frozen_at: int | None = None,
    ):
        """Keeps its arguments.

        Args:
          store: with the variables.
          jit_compile: compile the update with XLA: one fused pass over a bucket
            where op by op it would be dozens.
          coded: whether what is pushed passes through codecs.
          frozen_at: updates after which the second moments were left of what
            passes through a codec that keeps a residual; None: they go on.
        """
        self.store = store
        self._plan = store.plan
        self._jit_compile = jit_compile
        self._coded = coded
        self._frozen_at = frozen_at

    def outer_handles(self) -> dict[int, list[tf.Tensor]]:
        """`ServerHandles.outer`."""
        return {}

    def trained(self, p: int) -> list[int]:
        """The buckets of a ps that are updated as a whole."""
        return self.store.trained[p]

    def sends(self, i: int) -> bool:
        """Whether a step pushes the bucket as a whole."""
        return self._plan.sends(i)

    def channel(self, i: int) -> Channel:
        """How what is pushed of a bucket travels."""
        return self._plan.up[i] if self._coded else self._plan.exact(i)

    def optimizer(self, p: int) -> ServerOptimizer:
        return self.store.optimizers[p]

    def state_handles(self, p: int, handles: ServerHandles) -> list[tf.Tensor]:
        return handles.store.slots[p]

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
        frozen = self._frozen(mine)
        value_handles = [handles.store.values[i] for i in mine]
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
                return optimizer.apply(values, state, gradients, learning_rate, scale, frozen)

            if applies is None:
                return updated()
            return tf.cond(applies, updated, lambda: (values, state))

        values, state = update(
            values, state, [arrived[i] for i in mine], learning_rate, scale, applies
        )
        return write([*value_handles, *state_handles], [*values, *state])

    def _frozen(self, mine: list[int]) -> Frozen | None:
        """The second moments that an update of these buckets leaves alone."""
        if self._frozen_at is None:
            return None
        return Frozen([self.channel(i).codec.keeps_residual for i in mine], self._frozen_at)

    def apply_rows(self, i, handles, where, gradients, learning_rate, scale, applies):
        """The update of some rows, as if the table had no others; see `apply`.

        Args:
          i: bucket, of `row_optimizers` of the store.
          where: int [n], the rows.
          gradients: [n, width].
        """
        optimizer, bucket = self.store.row_optimizers[i], self._plan.buckets[i]
        state_handles = handles.store.row_slots[i]

        def current(handle, dtype, shape, rows):
            if not rows:
                return read(handle, dtype, shape)
            return tf.raw_ops.ResourceGather(
                resource=handle, indices=where, dtype=tf.as_dtype(dtype)
            )

        value = current(handles.store.values[i], bucket.dtype, bucket.shape, True)
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
                [handles.store.values[i], *state_handles],
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
        self,
        store: ParameterStore,
        jit_compile: bool,
        optimizer: keras.optimizers.Optimizer,
    ):
        """Makes the optimizer's state on the servers.

        Args:
          store, jit_compile: see `CompiledOptimizer`.
          optimizer: its settings count.
        """
        super().__init__(store, jit_compile)
        self._trained = [
            [i for i, b in enumerate(store.plan.buckets) if b.ps == p and b.kind.treatment.trained]
            for p in range(store.plan.num_ps)
        ]
        self._optimizers = {}
        for p, mine in enumerate(self._trained):
            if not mine:
                continue
            with tf.device(ps_device(p)):
                variables = [store.stored[i] for i in mine]
                self._optimizers[p] = ServerOptimizer(optimizer, variables, [False] * len(mine))
            _keras.mark_remote(self._optimizers[p].variables)

    def outer_handles(self):
        return {p: o.handles for p, o in self._optimizers.items()}

    def trained(self, p):
        return self._trained[p]

    def sends(self, i):
        return self._plan.sends(i) or self._plan.buckets[i].kind.treatment.trained

    def channel(self, i):
        return self._plan.whole(i)

    def optimizer(self, p):
        return self._optimizers[p]

    def state_handles(self, p, handles):
        return handles.outer[p]
