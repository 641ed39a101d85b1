"""What of a model goes where, and how it travels: decided before anything exists on a server."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_optimizers, errors
from tfps.compression import Auto, Codec, Identity, with_feedback
from tfps.embeddings.layer import layer_of
from tfps.model import optimizer_traits, server_optimizer
from tfps.model.inspection import Inspection
from tfps.model.optimizer_set import ONCE, AnyOptimizer, OptimizerSet
from tfps.model.stateless_model import StatelessModel
from tfps.store import placement
from tfps.store.buckets import BUCKET_BYTES, Bucket, build_buckets
from tfps.store.channel import Channel, chosen
from tfps.store.dense_rows import DenseRows, RowRange
from tfps.store.hash_rows import HashRows
from tfps.store.mailbox import MOST_PS
from tfps.store.placement import Placement, Shard, VariableSpec
from tfps.store.remote_variable import RemoteVariable
from tfps.store.row_storage import Part
from tfps.store.tables import Ids, Table
from tfps.store.treatment import FROZEN, ROWS, TRAIN, Kind, state_treatment

_IDENTITY = Identity()


class Plan:
    """The buckets of one model, their servers and their codecs.

    Attributes:
      num_ps: number of parameter servers.
      variables: the variables that an optimizer trains, then the model's state.
      num_trainable: how many of the variables an optimizer trains.
      optimized: the variables for which Keras builds the model's optimizer.
      remote: variable -> its `RemoteVariable`, for variables that are on the servers already.
      treatments: per variable, how its values change.
      specs: per variable, what placement needs to know of it.
      shards: where each element of each variable lives.
      buckets: how the shards are stored.
      tables: variable -> its `Table`, for variables of which only rows travel.
      of_tables: bucket -> the `Table` of which it holds rows.
      hashed: variable -> the `TableSettings` of a table that grows. In the plan such a variable has
        no rows, and neither have its buckets, one on each ps.
      growing: bucket of such a table -> its `HashRows`.
      up, down: per bucket, the `Channel` of what is pushed and of what is pulled.
    """

    def __init__(
        self,
        num_ps: int,
        partitioner: tf.distribute.experimental.partitioners.Partitioner | None,
        program: StatelessModel,
        optimizer: AnyOptimizer | None,
        inspection: Inspection,
        push: Codec | str | Callable[[Any], Any] | None = None,
        pull: Codec | str | Callable[[Any], Any] | None = None,
        lazy: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
    ):
        """Places the variables and chooses their codecs.

        Args:
          num_ps: number of parameter servers.
          partitioner: how variables are split; None keeps them whole.
          program: the model.
          optimizer: what the model was compiled with, or several optimizers with their variables;
            None for evaluation alone.
          inspection: what a step does with the variables. A trainable variable
            without a gradient is stored but never updated, as in Keras. So is a variable that
            belongs to no optimizer.
          push, pull: the codec for gradients and for parameters, or a function of
            the variable that gives one.
          lazy: whether only those rows of a table are updated that a step looked up.
          bucket_bytes: see `build_buckets`.

        Raises:
          ConfigError: the partitioner splits a variable, but the optimizer needs variables
            whole; or the optimizer cannot update rows alone; or what was given is no codec; or
            there are more ps than can train.
        """
        if optimizer is not None and num_ps > MOST_PS:
            raise errors.ConfigError(
                f"the cluster has {num_ps} ps, but at most {MOST_PS} can train a model; give fewer"
            )
        self.num_ps = num_ps
        self.variables = [*program.trainable, *program.state]
        self.num_trainable = len(program.trainable)
        self.optimized = program.optimized
        self.remote = {
            i: v.value for i, v in enumerate(self.variables) if isinstance(v.value, RemoteVariable)
        }
        self.hashed = {
            i: layer.settings for i, v in enumerate(self.variables) if (layer := layer_of(v))
        }
        self._push = functools.partial(chosen, push, weights=False)
        self._pull = functools.partial(chosen, pull, weights=True)
        looked_up = [*inspection.tables, *([False] * len(program.state))]
        self._owners = self._owners_of(optimizer, len(self.variables))
        self._require_looked_up(looked_up)
        for i, (one, table) in enumerate(zip(self._owners, looked_up, strict=True)):
            if (lazy or i in self.hashed) and table and one is not None:
                optimizer_traits.require_lazy(one)
        kinds = self._kinds(program, optimizer, inspection, lazy)
        self.treatments = [kind.treatment for kind in kinds]
        trained = [treatment.trained for treatment in self.treatments]
        constrained = [getattr(v, "constraint", None) is not None for v in self.variables]
        # What the optimizer must see as a whole.
        intact = [
            t and one is not None and not optimizer_traits.is_elementwise(one)
            for one, t in zip(self._owners, trained, strict=True)
        ]
        whole = [c or i for c, i in zip(constrained, intact, strict=True)]
        self._partitioner = partitioner
        self.specs = self._specs(trained, whole, constrained, looked_up)
        self.shards = self._place()
        self._require_whole(intact)
        alone = [
            (w and t) or i in self.remote or looked_up[i] or i in self.hashed
            for i, (w, t) in enumerate(zip(whole, trained, strict=True))
        ]
        uncut = [kind.push.matrices for kind in kinds]
        self.buckets = build_buckets(self.specs, self.shards, kinds, alone, uncut, bucket_bytes)
        self.tables = {i: self._table(i) for i, t in enumerate(looked_up) if t}
        self.of_tables = {p.bucket: t for t in self.tables.values() for p in t.storage.parts}
        self.growing = {
            b: t.storage for b, t in self.of_tables.items() if isinstance(t.storage, HashRows)
        }
        self.up = [
            self._both_parts(b) if b.kind.assigned else self._channel(b, b.kind.push)
            for b in self.buckets
        ]
        self.down = [self._channel(b, b.kind.pull) for b in self.buckets]

    def sends(self, bucket: int) -> bool:
        """Whether a step pushes the bucket as a whole."""
        return self.buckets[bucket].kind.treatment.pushed and bucket not in self.of_tables

    @property
    def has_codecs(self) -> bool:
        """Whether any bucket is pushed through a codec; rows of tables do not count."""
        return self.chooses("push") or any(not c.codec.is_identity for c in self.up)

    def chooses(self, way: str) -> bool:
        """Whether a codec is chosen while training goes on (`Auto`) for a way, "push" or "pull"."""
        tables = (self._push, self._pull)[way == "pull"]
        return any(isinstance(getattr(b.kind, way), Auto) for b in self.buckets) or any(
            isinstance(tables(self.variables[i]), Auto) for i in self.tables
        )

    def decide(self, push: Codec, pull: Codec) -> None:
        """Puts codecs in the place of `Auto`, or of those that were put there before.

        What has been traced goes on with the codecs that it was traced with.

        Args:
          push, pull: of the gradients, and of the parameters.
        """
        for i, bucket in enumerate(self.buckets):
            if isinstance(bucket.kind.push, Auto):
                self.up[i] = self._channel(bucket, with_feedback(push))
            if isinstance(bucket.kind.pull, Auto):
                self.down[i] = self._channel(bucket, pull)
        for i, table in self.tables.items():
            up, down = self._push(self.variables[i]), self._pull(self.variables[i])
            table.recode(
                (push if isinstance(up, Auto) else up).for_rows(),
                (pull if isinstance(down, Auto) else down).for_rows(weights=True),
            )

    def exact(self, bucket: int) -> Channel:
        """The channel without a codec."""
        return self._channel(self.buckets[bucket], _IDENTITY)

    def whole(self, bucket: int) -> Channel:
        """How a push of the whole bucket travels, even if the bucket is a table's."""
        held = self.buckets[bucket]
        if held.kind.assigned:
            return self.exact(bucket)
        if bucket not in self.of_tables:
            return self.up[bucket]
        variable = self.variables[held.shards[0].variable]
        return self._channel(held, with_feedback(self._push(variable)))

    def placement(self) -> Placement:
        """Which part of which variable is on which ps; of a table that grows, what it reserves."""
        reserved = {
            i: settings.reserved(self.num_ps) * settings.width
            for i, settings in self.hashed.items()
        }
        shards = [
            dataclasses.replace(s, end=reserved[s.variable]) if s.variable in reserved else s
            for s in self.shards
        ]
        return Placement.of(self.specs, shards, self.num_ps)

    def row_bytes(self, ids: dict[int, Ids]) -> tuple[tf.Tensor, tf.Tensor]:
        """float64 scalars: (bytes up, bytes down) of the tables in a step."""
        zero = tf.constant(0.0, tf.float64)
        up = [self.tables[i].bytes_up(one) for i, one in ids.items()]
        down = [self.tables[i].bytes_down(one) for i, one in ids.items()]
        return tf.add_n([zero, *up]), tf.add_n([zero, *down])

    def _owners_of(self, optimizer, count) -> list[keras.optimizers.Optimizer | None]:
        """Per variable, the Keras optimizer that updates it; None for the model's state."""
        if optimizer is None:
            return [None] * count
        owners = [optimizer_traits.owner_of(optimizer, i) for i in range(self.num_trainable)]
        return [*owners, *([None] * (count - self.num_trainable))]

    def _kinds(self, program, optimizer, inspection, lazy) -> list[Kind]:
        kinds = []
        assigned = inspection.assigned or [False] * len(program.trainable)
        for i, (v, connected, table) in enumerate(
            zip(program.trainable, inspection.connected, inspection.tables, strict=True)
        ):
            pull, owner = self._pull(v), self._owners[i]
            if owner is None or not connected:
                # No optimizer touches it, but what a step assigns to it stays.
                writes = assigned[i] and not connected
                kinds.append(Kind(state_treatment(v, False)) if writes else Kind(FROZEN, pull=pull))
                continue
            treatment = ROWS if (lazy or i in self.hashed) and table else TRAIN
            moved = assigned[i] and not table
            push = _IDENTITY if table or moved else with_feedback(self._push(v))
            index = 0
            calls: tuple[int, ...] = ONCE
            if isinstance(optimizer, OptimizerSet):
                index, calls = optimizer.owners[i] or 0, optimizer.calls_of(i)
            decayed = _keras_optimizers.decays(owner, v)
            kinds.append(Kind(treatment, push, pull, decayed, v.constraint, index, calls, moved))
        added_to = inspection.added_to or [False] * len(program.state)
        for v, updated, added in zip(program.state, inspection.updated, added_to, strict=True):
            if updated:
                # Of what a step writes back, a codec's error would add up.
                kinds.append(Kind(state_treatment(v, added)))
            else:
                kinds.append(Kind(FROZEN, pull=self._pull(v)))
        return kinds

    def _specs(self, trained, whole, constrained, tables) -> list[VariableSpec]:
        slots = {id(one): server_optimizer.slots(one) for one in self._owners if one is not None}
        # A partitioner that decides by itself is told what must stay whole; others
        # were asked for the split by the user, who is told that it cannot be.
        kept = whole if hasattr(self._partitioner, "place") else constrained
        return [
            VariableSpec(
                v.path,
                (0, *v.shape[1:]) if i in self.hashed else tuple(v.shape),
                keras.backend.standardize_dtype(v.dtype),
                splittable=not keep,
                slots=slots[id(one)](tuple(v.shape)) if t else 0.0,
                by_rows=table,
            )
            for i, (v, one, keep, t, table) in enumerate(
                zip(self.variables, self._owners, kept, trained, tables, strict=True)
            )
        ]

    def _place(self) -> list[Shard]:
        here = [i for i in range(len(self.specs)) if i not in {*self.remote, *self.hashed}]
        placed = placement.place([self.specs[i] for i in here], self.num_ps, self._partitioner)
        shards = [Shard(here[s.variable], s.begin, s.end, s.ps) for s in placed]
        for i, remote in self.remote.items():
            row = self.specs[i].size // self.specs[i].shape[0]
            shards += [
                Shard(i, begin * row, end * row, ps)
                for ps, (begin, end) in enumerate(remote.row_ranges)
            ]
        shards += [Shard(i, 0, 0, ps) for i in self.hashed for ps in range(self.num_ps)]
        return sorted(shards, key=lambda s: (s.variable, s.begin))

    def _require_looked_up(self, looked_up: Sequence[bool]) -> None:
        for i in self.hashed:
            if i >= self.num_trainable:
                raise errors.ConfigError(
                    f"{self.variables[i].path} grows on the servers, which keep only tables that "
                    "are trained, and its layer has trainable=False; set layer.trainable=True, "
                    "and optimizer=keras.optimizers.SGD(0.0) on the layer to leave its rows as "
                    "they are"
                )
            if not looked_up[i]:
                raise errors.ConfigError(
                    f"{self.variables[i].path} grows on the servers, so a step may only look rows "
                    "up with its layer, outside of branches and loops, and by ids that depend on "
                    "the batch alone; compile with run_eagerly=False, and look no rows up in "
                    "a test_step or predict_step of your own"
                )

    def _require_whole(self, intact: Sequence[bool]) -> None:
        for shard in self.shards:
            spec = self.specs[shard.variable]
            if intact[shard.variable] and shard.size != spec.size:
                name = type(self._owners[shard.variable]).__name__
                raise errors.ConfigError(
                    f"{name} needs whole variables, but {spec.path} {spec.shape} is split over "
                    "the servers; use no variable_partitioner (and a larger max_chief_bytes), or "
                    "an elementwise optimizer such as Adam"
                )

    def _table(self, variable: int) -> Table:
        spec = self.specs[variable]
        codecs = (
            self._push(self.variables[variable]).for_rows(),
            self._pull(self.variables[variable]).for_rows(weights=True),
        )
        if variable in self.hashed:
            parts = [
                Part(i, b.ps)
                for i, b in enumerate(self.buckets)
                if b.shards[0].variable == variable
            ]
            rows = HashRows(self.hashed[variable], parts)
            return Table(rows, spec.shape[1:], spec.dtype, *codecs)
        width = spec.size // spec.shape[0]
        ranges = [
            RowRange(Part(i, b.ps), b.shards[0].begin // width, b.shards[0].end // width)
            for i, b in enumerate(self.buckets)
            if b.shards[0].variable == variable
        ]
        return Table(DenseRows(ranges), spec.shape[1:], spec.dtype, *codecs)

    def _channel(self, bucket: Bucket, codec: Codec) -> Channel:
        pieces: tuple[tuple[int, ...], ...] = (bucket.shape,)
        if codec.matrices:
            pieces = tuple(self._shape_of(shard) for shard in bucket.shards)
        elif not codec.is_identity:
            pieces = ((bucket.size,),)
        return Channel(codec, bucket.shape, bucket.dtype, pieces)

    def _both_parts(self, bucket: Bucket) -> Channel:
        """The channel of gradients together with what assignments move; without a codec."""
        shape = (2, *bucket.shape)
        return Channel(_IDENTITY, shape, bucket.dtype, (shape,))

    def _shape_of(self, shard: Shard) -> tuple[int, ...]:
        spec = self.specs[shard.variable]
        if not spec.shape:
            return ()
        return (shard.size // (spec.size // spec.shape[0]), *spec.shape[1:])
