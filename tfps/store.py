"""The parameter store: a model's variables and its optimizer, on the servers.

Holds what lives on the ps tasks and knows how a step reads it (`pull`) and
updates it (`push`). Both take the resource handles as arguments, never as
captures: a step that was traced once goes on after a variable was replaced.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras, errors, layout, optimizers, placement
from tfps.layout import Bucket
from tfps.optimizers import LossScale, ServerOptimizer
from tfps.placement import VariableSpec
from tfps.program import Program
from tfps.strategy import ParameterServerStrategy, ps_device

# Kinds of buckets. Trainable ones are (_TRAIN, decayed, constraint).
_TRAIN, _LAST, _SUM, _FROZEN = "train", "last", "sum", "frozen"


class ParameterStore:
    """The buckets of one model on the parameter servers.

    Attributes:
      specs: the model's variables: the trainable ones, then the state.
      shards: where each of their elements lives.
      buckets: how the shards are stored.
    """

    def __init__(
        self,
        strategy: ParameterServerStrategy,
        program: Program,
        optimizer: keras.optimizers.Optimizer | None,
        connected: Sequence[bool],
        updated: Sequence[bool],
        jit_compile: bool = True,
    ):
        """Creates the server variables and fills them from the model.

        Args:
          strategy: where.
          program: the model.
          optimizer: what it was compiled with; None for evaluation alone.
          connected: per trainable variable, whether it has a gradient. Without
            one it is stored but never updated, as in Keras.
          updated: per state variable, whether a training step writes it.
          jit_compile: compile the servers' updates with XLA: one fused pass over
            a bucket where op by op it would be dozens.

        Raises:
          ConfigError: the partitioner splits a variable, but the optimizer
            needs variables whole.
        """
        self._strategy = strategy
        self._jit_compile = jit_compile
        self._variables = [*program.trainable, *program.state]
        trained = [c and optimizer is not None for c in connected]
        kinds = [
            *(self._train_kind(optimizer, v) if t else (_FROZEN,)
              for v, t in zip(program.trainable, trained, strict=True)),
            *(_state_kind(v) if u else (_FROZEN,)
              for v, u in zip(program.state, updated, strict=True)),
        ]  # fmt: skip
        elementwise = optimizer is None or optimizers.is_elementwise(optimizer)
        constrained = [getattr(v, "constraint", None) is not None for v in self._variables]
        self.specs = [
            VariableSpec(v.path, tuple(v.shape), keras.backend.standardize_dtype(v.dtype), not c)
            for v, c in zip(self._variables, constrained, strict=True)
        ]
        partitioner = strategy.variable_partitioner
        self.shards = placement.place(self.specs, strategy.cluster.num_ps, partitioner)
        if not elementwise:
            self._require_whole(optimizer, len(program.trainable))
        alone = [
            kind[0] == _TRAIN and (c or not elementwise)
            for kind, c in zip(kinds, constrained, strict=True)
        ]
        self.buckets = layout.build(self.specs, self.shards, kinds, alone)
        self._stored = [self._create(b) for b in self.buckets]
        self._by_ps = [
            [i for i, b in enumerate(self.buckets) if b.ps == p and b.kind[0] == _TRAIN]
            for p in range(strategy.cluster.num_ps)
        ]
        self._optimizers = [self._create_optimizer(optimizer, p) for p in self._ps_indices]
        self._locks = [self._create_lock(p) for p in self._ps_indices]
        self._loss_scale = None
        self._static_scale = optimizers.static_loss_scale(optimizer) if optimizer else 1.0
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            with tf.device(ps_device(0)):
                self._loss_scale = LossScale(optimizer)
        self._synced: list[tf.Tensor] | None = None
        self.load()

    @staticmethod
    def _train_kind(optimizer, variable):
        decayed = _keras.decays(optimizers.inner(optimizer), variable)
        return _TRAIN, decayed, variable.constraint

    @property
    def _ps_indices(self) -> range:
        return range(self._strategy.cluster.num_ps)

    def _require_whole(self, optimizer, num_trainable: int) -> None:
        for shard in self.shards:
            spec = self.specs[shard.variable]
            if shard.variable < num_trainable and shard.size != spec.size:
                name = type(optimizers.inner(optimizer)).__name__
                raise errors.ConfigError(
                    f"{name} needs whole variables, but the partitioner "
                    f"{type(self._strategy.variable_partitioner).__name__} splits {spec.path} "
                    f"{spec.shape}; use no variable_partitioner, or an elementwise optimizer such "
                    "as Adam"
                )

    def _create(self, bucket: Bucket) -> keras.Variable:
        # One variable keeps its path, so that an optimizer that goes by names can.
        alone = len(bucket.shards) == 1
        path = self.specs[bucket.shards[0].variable].path if alone else "bucket"
        with tf.device(ps_device(bucket.ps)), _keras.path(path) as name:
            variable = keras.Variable(
                lambda shape, dtype: tf.zeros(shape, dtype),
                shape=bucket.shape,
                dtype=bucket.dtype,
                trainable=bucket.kind[0] == _TRAIN,
                name=name,
            )
        _keras.mark_remote([variable])
        if bucket.kind[0] == _TRAIN:
            variable.constraint = bucket.kind[2]
        return variable

    def _create_optimizer(self, optimizer, ps: int) -> ServerOptimizer | None:
        mine = self._by_ps[ps]
        if not mine:
            return None
        with tf.device(ps_device(ps)):
            built = ServerOptimizer(
                optimizer,
                [self._stored[i] for i in mine],
                [self.buckets[i].kind[1] for i in mine],
            )
        _keras.mark_remote(built.variables)
        return built

    def _create_lock(self, ps: int) -> tf.Tensor:
        with tf.device(ps_device(ps)):
            return tf.raw_ops.MutexV2(shared_name=f"tfps_apply_{id(self)}", container="")

    # What a step takes as arguments.

    def handles(self) -> dict:
        """The resource handles of everything on the servers, for `pull` and `push`."""
        scale = self._loss_scale.variables if self._loss_scale else []
        return {
            "values": [v.value.handle for v in self._stored],
            "state": [[v.value.handle for v in o.state] if o else [] for o in self._optimizers],
            "locks": list(self._locks),
            "loss_scale": [v.handle for v in scale],
        }

    def pull(self, handles: dict) -> list[tf.Tensor]:
        """Reads every bucket on its ps; the reader's device gets one tensor each."""
        values = []
        for bucket, handle in zip(self.buckets, handles["values"], strict=True):
            with tf.device(ps_device(bucket.ps)):
                values.append(_read(handle, bucket.dtype, bucket.shape))
        return values

    def pull_loss_scale(self, handles: dict) -> tf.Tensor:
        """float32 scalar by which workers multiply the loss."""
        if self._loss_scale is None:
            return tf.constant(self._static_scale)
        with tf.device(ps_device(0)):
            return _read(handles["loss_scale"][0], tf.float32, ())

    def unpack(self, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Pulled buckets as the model's variables, in the order of `specs`."""
        whole = layout.unpack(self.buckets, values, self.specs)
        return [whole[i] for i in range(len(self.specs))]

    def pack_updates(self, gradients, old_state, new_state) -> list[tf.Tensor | None]:
        """What a step sends, a tensor per bucket; None for buckets that it leaves alone.

        Args:
          gradients: per trainable variable, a tensor or None.
          old_state, new_state: per state variable, the pulled and the new value
            (None if untouched).
        """
        first = len(gradients)
        changes = {i: g for i, g in enumerate(gradients) if g is not None}
        for i, (old, new) in enumerate(zip(old_state, new_state, strict=True), start=first):
            if new is not None:
                changes[i] = new - old if _state_kind(self._variables[i])[0] == _SUM else new
        sent = [b for b in self.buckets if b.kind[0] != _FROZEN]
        packed = iter(layout.pack(sent, changes))
        return [None if b.kind[0] == _FROZEN else next(packed) for b in self.buckets]

    def push(self, handles: dict, updates: Sequence, learning_rate, finite, used_scale) -> None:
        """Sends a step's updates to the servers and applies them there.

        On each ps, the optimizer's update of all its buckets is one atomic
        step: it waits for the whole push of this worker, takes the ps's lock,
        and reads, computes and writes under it.

        Args:
          handles: of this store.
          updates: of `pack_updates`.
          learning_rate: float32 scalar.
          finite: bool scalar; false skips the optimizer (loss scaling).
          used_scale: float32 scalar, the loss scale that the worker used.
        """
        for p in self._ps_indices:
            with tf.device(ps_device(p)):
                arrived = {i: tf.identity(updates[i]) for i in self._by_ps[p]}
                if arrived or (p == 0 and self._loss_scale):
                    self._locked_update(p, handles, arrived, learning_rate, finite, used_scale)
        for i, (bucket, handle) in enumerate(zip(self.buckets, handles["values"], strict=True)):
            with tf.device(ps_device(bucket.ps)):
                if bucket.kind[0] == _LAST:
                    tf.raw_ops.AssignVariableOp(resource=handle, value=updates[i])
                elif bucket.kind[0] == _SUM:
                    tf.raw_ops.AssignAddVariableOp(resource=handle, value=updates[i])

    def _locked_update(self, p, handles, arrived, learning_rate, finite, used_scale) -> None:
        with tf.control_dependencies(list(arrived.values())):
            lock = tf.raw_ops.MutexLock(mutex=handles["locks"][p])
        written = []
        with tf.control_dependencies([lock]):
            if arrived:
                written += self._apply(p, handles, arrived, learning_rate, finite)
            if p == 0 and self._loss_scale:
                scale, good = (
                    _read(h, d, ())
                    for h, d in zip(handles["loss_scale"], (tf.float32, tf.int32), strict=True)
                )
                new = self._loss_scale.update(scale, good, used_scale, finite)
                written += _write(handles["loss_scale"], new)
        with tf.control_dependencies(written):
            tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)

    def _apply(self, p, handles, arrived, learning_rate, finite) -> list[tf.Operation]:
        optimizer, mine = self._optimizers[p], self._by_ps[p]
        value_handles = [handles["values"][i] for i in mine]
        values = [
            _read(h, self.buckets[i].dtype, self.buckets[i].shape)
            for h, i in zip(value_handles, mine, strict=True)
        ]
        state = [
            _read(h, v.dtype, v.shape)
            for h, v in zip(handles["state"][p], optimizer.state, strict=True)
        ]

        @tf.function(jit_compile=self._jit_compile, autograph=False)
        def apply(values, state, gradients, learning_rate, finite):
            def update():
                return optimizer.apply(values, state, gradients, learning_rate)

            if self._loss_scale is None:
                return update()
            return tf.cond(finite, update, lambda: (values, state))

        values, state = apply(values, state, [arrived[i] for i in mine], learning_rate, finite)
        return _write([*value_handles, *handles["state"][p]], [*values, *state])

    # The chief's copy.

    def load(self) -> None:
        """Fills the servers from the model's variables."""
        values = {i: v.value for i, v in enumerate(self._variables)}
        for bucket, stored in zip(self.buckets, self._stored, strict=True):
            mine = {s.variable: values[s.variable] for s in bucket.shards}
            (packed,) = layout.pack([bucket], mine)
            stored.assign(packed)
        self._note_sync()

    def load_if_changed(self) -> bool:
        """Fills the servers where the model was changed since the last `load` or `fetch`."""
        changed = not all(
            np.array_equal(v.numpy(), old.numpy())
            for v, old in zip(self._variables, self._synced, strict=True)
        )
        if changed:
            self.load()
        return changed

    def fetch(self) -> None:
        """Brings the servers' values into the model's variables."""
        arrays = [np.empty(s.size, tf.as_dtype(s.dtype).as_numpy_dtype) for s in self.specs]
        for bucket, stored in zip(self.buckets, self._stored, strict=True):
            flat = np.reshape(stored.numpy(), [-1])
            offset = 0
            for shard in bucket.shards:
                arrays[shard.variable][shard.begin : shard.end] = flat[offset : offset + shard.size]
                offset += shard.size
        for variable, array, spec in zip(self._variables, arrays, self.specs, strict=True):
            variable.assign(array.reshape(spec.shape))
        self._note_sync()

    def _note_sync(self) -> None:
        # Reading shares the buffer, so this costs memory only once a value is replaced.
        self._synced = [tf.convert_to_tensor(v.value) for v in self._variables]

    def iterations(self) -> int:
        """Updates applied so far."""
        return max((int(o.iterations.numpy()) for o in self._optimizers if o), default=0)

    def finalize(self) -> None:
        """Ends training as Keras does: an optimizer with moving averages installs them."""
        for optimizer, mine in zip(self._optimizers, self._by_ps, strict=True):
            if optimizer and optimizer.averages is not None:
                for i, average in zip(mine, optimizer.averages, strict=True):
                    self._stored[i].assign(average)


def _state_kind(variable: keras.Variable) -> tuple[str]:
    """How concurrent updates of a non-trainable variable combine.

    Integers and variables that declare `aggregation="sum"` are counters: the
    differences add up, so none is lost. Other values are replaced, and the last
    writer wins: what is stored is always a value that some worker's model
    computed, where a sum of averages' differences could leave their range.
    """
    counts = not tf.as_dtype(variable.dtype).is_floating and variable.dtype != "bool"
    return (_SUM,) if counts or getattr(variable, "aggregation", None) == "sum" else (_LAST,)


def _read(handle, dtype, shape) -> tf.Tensor:
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.as_dtype(dtype))
    value.set_shape(shape)
    return value


def _write(handles, values) -> list[tf.Operation]:
    return [
        tf.raw_ops.AssignVariableOp(resource=h, value=v)
        for h, v in zip(handles, values, strict=True)
    ]
