"""How a ps updates its buckets: an optimizer as a pure function between reads and writes.

`CompiledOptimizer` is the one that the model was compiled with, `OuterOptimizer` that of
`LocalSteps`. An aggregation decides when they run; see `aggregation.Aggregation`.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.model.frozen_adam import Frozen
from tfps.model.server_optimizer import ServerOptimizer
from tfps.store.channel import Channel
from tfps.store.handles import ServerHandles
from tfps.store.parameter_store import ParameterStore
from tfps.store.resources import read, write


class Rate(NamedTuple):
    """With which learning rate a ps applies an update.

    Attributes:
      learning_rate: float32 scalar; without effect if the optimizer follows a schedule.
      scale: float32 scalar by which either rate is multiplied, or None for 1.
      missed: int64 scalar, the updates that the push has missed. What a step assigns moves the
        values by so much less: the steps that were missed have assigned the same values as well.
    """

    learning_rate: tf.Tensor
    scale: tf.Tensor | None
    missed: tf.Tensor


class BucketOptimizer(abc.ABC):
    """What a server optimizes with, and which buckets that concerns.

    The pusher asks `sends` and `channel` while it traces the worker's side of a push. An
    aggregation calls `apply` and `apply_rows` while it traces the side of each ps, on its device
    and under its lock.

    Attributes:
      store: with the variables.
      by_rows: whether only rows of tables are pushed. If not, tables are pushed whole.
    """

    by_rows: bool

    def __init__(self, store: ParameterStore, jit_compile: bool):
        """Notes what to update.

        Args:
          store: with the variables.
          jit_compile: whether the update is compiled with XLA: one fused pass over a bucket
            where op by op it would be dozens.
        """
        self.store = store
        self._plan = store.plan
        self._jit_compile = jit_compile

    @abc.abstractmethod
    def outer(self) -> Mapping[int, ServerOptimizer]:
        """ps -> an optimizer beside those of the store; empty if there is none."""

    @abc.abstractmethod
    def trained(self, p: int) -> list[int]:
        """The buckets of a ps that are updated as a whole."""

    @abc.abstractmethod
    def sends(self, i: int) -> bool:
        """Whether a step pushes the bucket as a whole."""

    @abc.abstractmethod
    def channel(self, i: int) -> Channel:
        """How what is pushed of a bucket travels."""

    def moves(self, i: int) -> bool:
        """Whether a push of the bucket has both parts; see `Kind.assigned`."""
        del i
        return False

    @abc.abstractmethod
    def _of(self, p: int, handles: ServerHandles) -> tuple[ServerOptimizer, list[tf.Tensor]]:
        """The optimizer of a ps, and the resource handles of its state."""

    def _frozen(self, mine: Sequence[int]) -> Frozen | None:
        """Which of these buckets keep their second moments as they are; None if none does."""
        del mine
        return None

    def apply(
        self,
        p: int,
        handles: ServerHandles,
        arrived: Mapping[int, tf.Tensor | tuple],
        decoders: Mapping[int, Callable[[tuple], tf.Tensor]],
        rate: Rate,
        applies: tf.Tensor | None,
    ) -> list[tf.Operation]:
        """One update of the buckets that a ps updates as a whole.

        Args:
          p: index of the ps.
          handles: of the step.
          arrived: bucket -> gradient of the bucket's shape, or a payload if it has a decoder.
          decoders: bucket -> function of its payload. Such payloads are decoded in the same
            compiled function as the update, in one pass over memory.
          rate: of the update.
          applies: bool scalar; if it is false, everything stays as it is. None stands for true
            and saves the branch.

        Returns:
          The operations that write.
        """
        mine = self.trained(p)
        optimizer, slots = self._of(p, handles)
        buckets = [self._plan.buckets[i] for i in mine]
        value_handles = [handles.store.values[i] for i in mine]
        frozen = self._frozen(mine)
        values = [read(h, b.dtype, b.shape) for h, b in zip(value_handles, buckets, strict=True)]
        state = [read(h, v.dtype, v.shape) for h, v in zip(slots, optimizer.state, strict=True)]

        @tf.function(jit_compile=self._jit_compile, autograph=False)
        def update(values, state, arrived, rate, applies):
            gradients = [
                decoders[i](one) if i in decoders else one
                for i, one in zip(mine, arrived, strict=True)
            ]

            def updated():
                begun = list(values)
                for k, i in enumerate(mine):
                    if self.moves(i):
                        gradients[k], moved = tf.unstack(gradients[k])
                        begun[k] += moved / tf.cast(1 + rate.missed, moved.dtype)
                return optimizer.apply(
                    begun, state, gradients, rate.learning_rate, rate.scale, frozen
                )

            if applies is None:
                return updated()
            return tf.cond(applies, updated, lambda: (values, state))

        values, state = update(values, state, [arrived[i] for i in mine], rate, applies)
        with tf.control_dependencies(self._kept(mine, handles)):
            return write([*value_handles, *slots], [*values, *state])

    def _kept(self, mine: Sequence[int], handles: ServerHandles) -> list[tf.Operation]:
        """What has to be over before all rows of tables are replaced; see `RowPieces`."""
        kept = []
        for i in [i for i in mine if i in self.store.large.pieces]:
            table = self._plan.of_tables[i]
            kept += table.storage.keep_all(handles, table.part(i))
        return kept

    def apply_rows(
        self,
        i: int,
        handles: ServerHandles,
        ids: tf.Tensor,
        gradients: tf.Tensor,
        rate: Rate,
        applies: tf.Tensor | None,
    ) -> list[tf.Operation]:
        """The update of some rows of a table, as if it had no others; see `apply`.

        Args:
          i: a bucket of the store's `row_optimizers`.
          handles: of the step.
          ids: int64 [n], none of them twice.
          gradients: [n, ...].
          rate, applies: see `apply`. If it is not to be applied, no id gets a row.

        Returns:
          The operations that write.
        """
        optimizer, table = self.store.row_optimizers[i], self._plan.of_tables[i]
        storage, part = table.storage, table.part(i)
        if applies is not None:
            count = tf.size(ids) * tf.cast(applies, tf.int32)
            ids, gradients = ids[:count], gradients[:count]
        where, taken = storage.insert(handles, part, ids)
        value = storage.gather(handles, part, where, self._plan.buckets[i].dtype)
        slots = handles.store.row_slots[i]
        state = [
            storage.gather(handles, part, where, v.dtype, k)
            if optimizer.by_row[k]
            else read(slots[k], v.dtype, v.shape)
            for k, v in enumerate(optimizer.state)
        ]
        if taken is not None:
            gradients = tf.gather(gradients, taken)
        (new_value,), new_state = optimizer.apply(
            [value], state, [gradients], rate.learning_rate, rate.scale
        )
        written = storage.update(handles, part, where, new_value)
        for k, new in enumerate(new_state):
            if optimizer.by_row[k]:
                written += storage.update(handles, part, where, new, k)
            else:
                kept = new if applies is None else tf.where(applies, new, state[k])
                written.append(tf.raw_ops.AssignVariableOp(resource=slots[k], value=kept))
        with tf.control_dependencies(written):
            return [*written, *storage.commit(handles, part, where)]


class CompiledOptimizer(BucketOptimizer):
    """The optimizer that the model was compiled with, as the store keeps it."""

    by_rows = True

    def __init__(
        self,
        store: ParameterStore,
        jit_compile: bool,
        coded: bool = True,
        frozen_at: int | None = None,
    ):
        """Notes how gradients arrive.

        Args:
          store, jit_compile: see `BucketOptimizer`.
          coded: whether gradients pass through the plan's codecs.
          frozen_at: number of updates after which Adam's second moments were frozen (the end of
            the 1-bit Adam warm-up), or None while they still change. Only buckets that are sent
            through a codec with error feedback are frozen.
        """
        super().__init__(store, jit_compile)
        self._coded = coded
        self._frozen_at = frozen_at

    def outer(self) -> Mapping[int, ServerOptimizer]:
        return {}

    def trained(self, p: int) -> list[int]:
        return self.store.trained[p]

    def sends(self, i: int) -> bool:
        return self._plan.sends(i)

    def channel(self, i: int) -> Channel:
        return self._plan.up[i] if self._coded or self.moves(i) else self._plan.exact(i)

    def moves(self, i: int) -> bool:
        return self._plan.buckets[i].kind.assigned

    def _of(self, p: int, handles: ServerHandles) -> tuple[ServerOptimizer, list[tf.Tensor]]:
        return self.store.optimizers[p], handles.store.slots[p]

    def _frozen(self, mine: Sequence[int]) -> Frozen | None:
        if self._frozen_at is None:
            return None
        return Frozen([self.channel(i).codec.keeps_residual for i in mine], self._frozen_at)


class OuterOptimizer(BucketOptimizer):
    """The optimizer of `LocalSteps`, for the pseudo-gradients that workers push.

    Tables are pushed whole, because a worker trains on a copy of all of them.
    """

    by_rows = False

    def __init__(
        self,
        store: ParameterStore,
        jit_compile: bool,
        optimizer: keras.optimizers.Optimizer,
    ):
        """Creates the optimizer's state on the servers.

        Args:
          store, jit_compile: see `BucketOptimizer`.
          optimizer: its settings count; its own state stays unused.
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

    def outer(self) -> Mapping[int, ServerOptimizer]:
        return self._optimizers

    def trained(self, p: int) -> list[int]:
        return self._trained[p]

    def sends(self, i: int) -> bool:
        return self._plan.sends(i) or self._plan.buckets[i].kind.treatment.trained

    def channel(self, i: int) -> Channel:
        return self._plan.whole(i)

    def _of(self, p: int, handles: ServerHandles) -> tuple[ServerOptimizer, list[tf.Tensor]]:
        return self._optimizers[p], handles.outer[p]
