"""The parameter store: a model's variables and its optimizer, on the servers."""

from collections.abc import Collection
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras_creation, _tf_resources, errors
from tfps.cluster.devices import ps_device
from tfps.embeddings.layer import layer_of
from tfps.embeddings.part import TablePart
from tfps.model import optimizer_traits
from tfps.model.loss_scale import LossScale
from tfps.model.optimizer_set import AnyOptimizer, OptimizerSet
from tfps.model.server_optimizer import RowOptimizer, ServerOptimizer
from tfps.store.buckets import Bucket
from tfps.store.columns import Column, Writer
from tfps.store.growing import GrowingColumn, GrowingTable
from tfps.store.handles import LossScaleHandles, RoundHandles, ServerHandles, StoreHandles
from tfps.store.hash_rows import HashRows
from tfps.store.large_tables import LargeTables
from tfps.store.model_copy import ModelCopy
from tfps.store.optimizer_copy import OptimizerCopy, optimizers_of
from tfps.store.plan import Plan
from tfps.store.server_state import (
    Layout,
    LossScaleState,
    OptimizerState,
    ServerState,
    export_optimizers,
    restore_optimizers,
    spread,
)


class Saved(Protocol):
    """A state in files that the servers can read.

    Attributes:
      shapes: variable -> its shape.
      form: has `scaled`, whether there is a loss scale.
    """

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]: ...

    @property
    def form(self) -> Any: ...

    def fill(self, store: "ParameterStore") -> None:
        """Writes the state into a store that is made for the same variables."""


class ParameterStore:
    """The buckets of a plan on the parameter servers, and the chief's copy of them.

    Attributes:
      plan: which shards lie in which bucket, and on which ps.
      copy: the model's Keras variables.
      optimizer_copy: the Keras variables of its optimizer.
      stored: per bucket, the `keras.Variable` on its ps.
      trained: per ps, the buckets that its optimizer updates as a whole.
      optimizers: ps -> its `ServerOptimizer`, for those that train buckets as a whole.
      row_optimizers: bucket -> its `RowOptimizer`, for tables that are updated by rows.
      growing: bucket of a table that grows -> its `TablePart`.
      tables: variable -> its `GrowingTable`.
      versions: per ps, an int64 scalar on it: how many updates it has made.
      loss_scale: the `LossScale` on ps 0, or None if the loss is not scaled dynamically.
      large: the tables that snapshots copy in pieces.
    """

    def __init__(
        self,
        plan: Plan,
        optimizer: AnyOptimizer | None,
        piece_bytes: int | None = None,
        before: Collection[GrowingTable] = (),
    ):
        """Creates the server variables and fills them from the model.

        Args:
          plan: which shards lie in which bucket, and on which ps.
          optimizer: what the model was compiled with, or several; None for evaluation alone.
          piece_bytes: about how many bytes of a large table a snapshot copies at once; None if
            there are no snapshots.
          before: tables that were on these servers before, of which the chief has a part.
        """
        self.plan = plan
        self._layout = Layout(plan)
        self._optimizer = optimizer
        self.stored = [self._create(b) for b in plan.buckets]
        self._locks = [self._create_lock(p) for p in range(plan.num_ps)]
        self._writer = Writer(self._locks, self._before_writing)
        # Nothing has to be kept before there are slots.
        self.large = LargeTables(plan, None, [], {}, {}, [])
        self.copy = ModelCopy(optimizers_of(optimizer))
        values = Column(plan, dict(enumerate(self.stored)), self._writer)
        for i in values.variables():
            self.copy.add(plan.variables[i], values, i)
        # Some optimizers begin with slots that are made of the values.
        self.copy.load_if_changed()
        self.trained = [
            [i for i, b in enumerate(plan.buckets) if b.ps == p and _is_dense(b)]
            for p in range(plan.num_ps)
        ]
        self.optimizers = {
            p: self._create_optimizer(mine, p) for p, mine in enumerate(self.trained) if mine
        }
        self.row_optimizers = {
            i: self._create_row_optimizer(b)
            for i, b in enumerate(plan.buckets)
            if b.kind.treatment.by_rows
        }
        noted_from = None if piece_bytes is None else 0
        self.growing = {b: self._create_growing(b, noted_from) for b in plan.growing}
        self.large = LargeTables(
            plan, piece_bytes, self.stored, self.row_optimizers, self.growing, self._locks
        )
        self.loss_scale = None
        self.versions = [self._create_version(p) for p in range(plan.num_ps)]
        if optimizer is not None and optimizer_traits.is_dynamically_scaled(optimizer):
            with tf.device(ps_device(0)):
                self.loss_scale = LossScale(optimizer_traits.whole(optimizer))
        self.tables = {i: self._growing_table(i) for i in plan.hashed}
        for i, table in self.tables.items():
            for one in [old for old in before if old.layer is table.layer]:
                table.take_over(one)
            self.copy.add(plan.variables[i], GrowingColumn(table, ""), i)
        self.optimizer_copy = OptimizerCopy(
            plan, optimizer, self.placed(), self.loss_scale, self._writer, self.copy, self.tables
        )
        self.copy.load_if_changed()

    def handles(self) -> ServerHandles:
        """The resource handles of everything here, without outer optimizer and rounds."""
        scale = self.loss_scale
        store = StoreHandles(
            values={i: v.value.handle for i, v in enumerate(self.stored)},
            slots={p: o.handles for p, o in self.optimizers.items()},
            row_slots={i: o.handles for i, o in self.row_optimizers.items()},
            tables={i: part.handles for i, part in self.growing.items()},
            locks=list(self._locks),
            versions=[v.handle for v in self.versions],
            loss_scale=LossScaleHandles(*(v.handle for v in scale.variables)) if scale else None,
            histories=self.large.handles(),
        )
        return ServerHandles(store, {}, RoundHandles({}, {}, {}, []))

    def _create(self, bucket: Bucket) -> keras.Variable:
        # A variable that is alone keeps its path, because some optimizers go by names.
        first = bucket.shards[0]
        path = self.plan.specs[first.variable].path if len(bucket.shards) == 1 else "bucket"
        initial = {
            "initializer": lambda shape, dtype: tf.zeros(shape, dtype),
            "shape": bucket.shape,
            "dtype": bucket.dtype,
        }
        if first.variable in self.plan.remote:
            initial = {"initializer": self.plan.remote[first.variable].parts[bucket.ps]}
        trained = bucket.kind.treatment.trained
        with tf.device(ps_device(bucket.ps)), _keras_creation.path(path) as name:
            variable = keras.Variable(**initial, trainable=trained, name=name)
        if trained:
            variable.constraint = bucket.kind.constraint
        return variable

    def _create_optimizer(self, mine: list[int], ps: int) -> ServerOptimizer:
        with tf.device(ps_device(ps)):
            return ServerOptimizer(
                self._optimizer,
                [self.stored[i] for i in mine],
                [self.plan.buckets[i].kind.decayed for i in mine],
                [self.plan.buckets[i].kind.owner for i in mine],
                [self.plan.buckets[i].kind.calls for i in mine],
            )

    def _create_row_optimizer(self, bucket: Bucket) -> RowOptimizer:
        with tf.device(ps_device(bucket.ps)):
            kind = bucket.kind
            return RowOptimizer(
                self._optimizer, bucket.shape, bucket.dtype, kind.decayed, kind.owner, kind.calls
            )

    def _create_growing(self, bucket: int, noted_from: int | None) -> TablePart:
        optimizer = self.row_optimizers.get(bucket)
        begin = optimizer.begin if optimizer is not None else []
        return self.plan.growing[bucket].make(bucket, begin, noted_from)

    def _growing_table(self, variable: int) -> GrowingTable:
        storage = self.plan.tables[variable].storage
        layer = layer_of(self.plan.variables[variable])
        assert isinstance(storage, HashRows) and layer is not None
        optimizer = self.row_optimizers.get(storage.parts[0].bucket)
        states = optimizer.state_names if optimizer is not None else []
        slots = {name: k for k, (owner, name) in enumerate(states) if owner is not None}
        return GrowingTable(
            storage,
            self.growing,
            self._locks,
            self.versions,
            slots,
            layer,
            self.large.pieces,
        )

    def _before_writing(self, variable: Any = None) -> None:
        """See `LargeTables.before_writing`."""
        self.large.before_writing(variable)

    def _create_lock(self, ps: int) -> tf.Tensor:
        with tf.device(ps_device(ps)):
            return tf.raw_ops.MutexV2(shared_name=f"tfps_apply_{id(self)}", container="")

    def _create_version(self, ps: int) -> tf.Variable:
        with tf.device(ps_device(ps)):
            return tf.Variable(0, dtype=tf.int64, trainable=False, name="version")

    def renew(self, servers: Collection[int]) -> None:
        """Makes all variables of some servers anew, without values, after the servers were lost.

        Handles are arguments of every step, so nothing is traced anew.

        Args:
          servers: indices of the parameter servers.
        """
        for i, bucket in enumerate(self.plan.buckets):
            if bucket.ps in servers:
                _renew(self.stored[i])
        for optimizer, mine in self.placed():
            if self.plan.buckets[mine[0]].ps in servers:
                for variable in optimizer.state:
                    _renew(variable)
        for i in self.growing:
            if self.plan.buckets[i].ps in servers:
                noted_from = self.large.cut if i in self.large.pieces else None
                self.growing[i] = self._create_growing(i, noted_from)
        self.large.renew(servers)
        for ps in servers:
            _renew(self.versions[ps])
            self._locks[ps] = self._create_lock(ps)
        if self.loss_scale and 0 in servers:
            for variable in self.loss_scale.variables:
                _renew(variable)

    # The chief's copy.

    def load_if_changed(self) -> bool:
        """Takes to the servers what was changed on the chief; see `ModelCopy`."""
        self.optimizer_copy.link()
        return self.copy.load_if_changed()

    def fetch(self, elsewhere: int = 0) -> None:
        """Brings the servers' values, and the state of a built optimizer, to the chief.

        Args:
          elsewhere: number of updates that the servers made with another optimizer (`LocalSteps`).
        """
        self.optimizer_copy.updates.count = self.iterations() + elsewhere
        self.copy.fetch()

    def iterations(self) -> int:
        """Number of updates that the compiled optimizer has applied."""
        return max((int(o.iterations.numpy()) for o, _ in self.placed()), default=0)

    def finalize(self, compiled_with: keras.optimizers.Optimizer | None) -> None:
        """Ends training as Keras does: an optimizer with moving averages installs them.

        The chief's copy notices when it looks again.

        Args:
          compiled_with: the model's optimizer. As in Keras, others that a step of the model's own
            applies install nothing.
        """
        every = [average for optimizer, _ in self.placed() for average in optimizer.averages]
        if all(average is None for average in every):
            return
        if not self.iterations():
            return  # Nothing was averaged yet.
        self._before_writing()
        for optimizer, mine in self.placed():
            for i, average in zip(mine, optimizer.averages, strict=False):
                if average is not None and self._is_of(compiled_with, i):
                    self.stored[i].assign(average)

    def _is_of(self, compiled_with: keras.optimizers.Optimizer | None, bucket: int) -> bool:
        """Whether a bucket's optimizer is the model's, or inside of it."""
        if compiled_with is None:
            return False
        if isinstance(self._optimizer, OptimizerSet) and self._optimizer.whole is not None:
            return True
        variable = self.plan.buckets[bucket].shards[0].variable
        owner = optimizer_traits.owner_of(self._optimizer, variable)
        return owner is optimizer_traits.inner(compiled_with)

    # The state of the servers.

    def export(self) -> ServerState:
        """Everything that is on the servers, as arrays on the chief.

        This brings all values and slots here, tables included. No worker may push meanwhile.
        """
        arrays = ((i, np.asarray(v.numpy())) for i, v in enumerate(self.stored))
        scale = self.loss_scale
        return ServerState(
            {i: spec.path for i, spec in enumerate(self.plan.specs)},
            self._layout.whole(arrays),
            self.export_optimizer(),
            np.array([v.numpy() for v in self.versions]),
            LossScaleState(*(v.numpy() for v in scale.variables)) if scale else None,
            {i: table.export() for i, table in self.tables.items()},
        )

    def export_optimizer(self) -> OptimizerState:
        """The part of `export` that belongs to the compiled optimizer."""
        return export_optimizers(self._layout, self.placed())

    def restore(self, state: "ServerState | Saved", elsewhere: int = 0) -> None:
        """Writes a state to the servers, and into the chief's variables.

        Args:
          state: of a store for the same model and optimizer, in whatever way it was laid out: as
            `export` gave it, or in files that the servers can read.
          elsewhere: see `fetch`.

        Raises:
          ConfigError: the state is of another model or optimizer.
          SnapshotDamaged: the files cannot be read; nothing was written then.
        """
        self.fill(state)
        self.fetch(elsewhere)

    def fill(self, state: "ServerState | Saved") -> None:
        """Writes a state to the servers alone; see `restore`."""
        if isinstance(state, ServerState):
            self.write(state)
        else:
            self._require_alike(state.shapes, state.form.scaled)
            self._before_writing()
            state.fill(self)

    def write(self, state: ServerState) -> None:
        """Writes an exported state to the servers; see `restore`."""
        shapes = {i: value.shape for i, value in state.values.items()}
        self._require_alike(shapes, state.loss_scale is not None)
        self._before_writing()
        for i, stored in enumerate(self.stored):
            stored.assign(self._layout.part(i, state.values))
        restore_optimizers(self._layout, self.placed(), state.optimizer)
        versions = spread(state.versions, self.plan.num_ps)
        for variable, version in zip(self.versions, versions, strict=True):
            variable.assign(version)
        for i, table in self.tables.items():
            table.clear()
            if i in state.tables:
                table.put(state.tables[i])
        if self.loss_scale and state.loss_scale:
            for variable, array in zip(self.loss_scale.variables, state.loss_scale, strict=True):
                variable.assign(array)

    def _require_alike(self, exported: dict[int, tuple[int, ...]], scaled: bool) -> None:
        shapes = {i: spec.shape for i, spec in enumerate(self.plan.specs)}
        if shapes != exported or scaled != bool(self.loss_scale):
            raise errors.ConfigError(
                f"the state has variables of the shapes {list(exported.values())} and "
                f"{'a' if scaled else 'no'} loss scale, but the model {list(shapes.values())}; "
                "restore it into the model that it was exported from, compiled alike"
            )

    def placed(self) -> list[tuple[ServerOptimizer, list[int]]]:
        """Each optimizer with the buckets that it updates."""
        whole = [(o, self.trained[p]) for p, o in self.optimizers.items()]
        return [*whole, *((o, [i]) for i, o in self.row_optimizers.items())]


def _renew(variable: keras.Variable | tf.Variable) -> None:
    _tf_resources.renew(variable.value if isinstance(variable, keras.Variable) else variable)


def _is_dense(bucket: Bucket) -> bool:
    """Whether an optimizer updates the bucket as a whole."""
    return bucket.kind.treatment.trained and not bucket.kind.treatment.by_rows
