"""Reads the servers' part of a snapshot: back to the servers themselves, or to the chief."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps import errors
from tfps.cluster.devices import ps_device
from tfps.embeddings.handles import COUNT, KEY, LAST
from tfps.store.growing import TableState
from tfps.store.parameter_store import ParameterStore
from tfps.store.server_state import (
    AggregationState,
    Layout,
    LossScaleState,
    Placed,
    ServerState,
    export_optimizers,
)
from tfps.store.snapshot_calls import all_at_once, checked, file_errors, reader_of, restored
from tfps.store.snapshot_form import Form, SavedPlan
from tfps.store.snapshot_parts import Held, held_by, names_of_growing
from tfps.store.snapshot_places import Place
from tfps.store.snapshot_rows import SavedRows


class _Array(NamedTuple):
    """Stands in for a server variable that `export_optimizers` reads."""

    array: np.ndarray

    def numpy(self) -> np.ndarray:
        return self.array


class _Optimizer(NamedTuple):
    """Stands in for a `ServerOptimizer` that `export_optimizers` reads."""

    state: list[_Array]
    state_names: list[tuple[int | None, str]]


class SavedServers:
    """The servers' part of a snapshot, which goes back to them from the files.

    Attributes:
      form: how it lies in the parts.
    """

    def __init__(self, place: Place, form: Form):
        """Reads nothing yet.

        Args:
          place: of the parts.
          form: what the manifest says of them.
        """
        self._place = place
        self.form = form
        self._layout = Layout(SavedPlan(form))
        self._rows = SavedRows(place, form)

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """Variable -> its shape."""
        return {i: tuple(shape) for i, (_, shape, _) in enumerate(self.form.variables)}

    def fill(self, store: ParameterStore) -> None:
        """Writes the snapshot into a store, in whatever way it is laid out.

        Nothing is written unless all of it could be read.

        Raises:
          SnapshotDamaged: a part cannot be read.
        """
        if not self.form.is_laid_out_as(Form.of(store, {})):
            store.write(self.load())
            return
        self.fill_ps(store, range(store.plan.num_ps))

    def fill_ps(
        self,
        store: ParameterStore,
        servers: Collection[int],
        outer: dict[str, Placed] | None = None,
    ) -> None:
        """Writes what some servers had back to them; the store is laid out as the snapshot.

        Args:
          store: with the variables.
          servers: indices of the parameter servers.
          outer: name of an exchange -> its outer optimizers, each with its buckets, for the
            exchanges whose outer optimizers are filled, too.

        Raises:
          SnapshotDamaged: a part cannot be read.
        """
        names = [name for name, _ in self.form.outer]
        held_of = held_by(store, [(outer or {}).get(name, []) for name in names])
        every = [(ps, [h for h in held_of if h.ps == ps]) for ps in sorted(servers)]
        every = [(ps, held) for ps, held in every if held]
        with all_at_once(len(every)) as run:
            read = run(lambda one: self._restored(*one), every)
        growing = [
            (store.tables[i], names, bucket)
            for i, buckets, names in self.form.growing
            for bucket in buckets
            if store.plan.buckets[bucket].ps in servers
        ]
        states = [self._growing_on_ps(bucket, names) for _, names, bucket in growing]
        for (ps, held), tensors in zip(every, read, strict=True):
            with tf.device(ps_device(ps)):
                for h, tensor in zip(held, tensors, strict=True):
                    tf.raw_ops.AssignVariableOp(resource=h.variable.handle, value=tensor)
        for (table, names, bucket), pieces in zip(growing, states, strict=True):
            table.clear([bucket])
            for meta, *rows in pieces:
                with tf.device(ps_device(store.plan.buckets[bucket].ps)):
                    keys, counts, lasts = meta[:, KEY], meta[:, COUNT], meta[:, LAST]
                table.put_part(bucket, keys, dict(zip(names, rows, strict=True)), counts, lasts)

    def _growing_on_ps(self, bucket: int, names: list[str]) -> list[list[tf.Tensor]]:
        """[what is noted of keys, rows of each name] of pieces of a part, on the part's ps."""
        ps, mine = self.form.buckets[bucket][0], names_of_growing(bucket, names)
        if self._rows.has(bucket):
            return self._rows.keys_on_ps(bucket)
        with tf.device(ps_device(ps)), file_errors(f"ps {ps}", errors.SnapshotDamaged):
            dtypes = [tf.int64, *([tf.float32] * len(names))]
            return [restored(self._place.on_ps(ps), mine, dtypes)]

    def _part_of_growing(self, bucket: int, names: list[str]) -> list[np.ndarray]:
        """[what is noted of keys, rows of each name] of a part, on the chief."""
        if self._rows.has(bucket):
            return self._rows.keys_on_chief(bucket)
        read, ps = self._reader(), self.form.buckets[bucket][0]
        return [read(ps, name) for name in names_of_growing(bucket, names)]

    def _restored(self, ps: int, held: Sequence[Held]) -> list[tf.Tensor]:
        whole = [h for h in held if not self._rows.has_column(h.name)]
        with tf.device(ps_device(ps)), file_errors(f"ps {ps}", errors.SnapshotDamaged):
            names = [h.name for h in whole]
            dtypes = [tf.as_dtype(h.variable.dtype) for h in whole]
            found = dict(zip(names, restored(self._place.on_ps(ps), names, dtypes), strict=True))
        every = {h.name: tf.as_dtype(h.variable.dtype) for h in held}
        for bucket in self._rows.dense_on(ps):
            found |= self._rows.columns_on_ps(bucket, every)
        return [found[h.name] for h in held]

    def load(self) -> ServerState:
        """The snapshot as arrays on the chief, by variable.

        Raises:
          SnapshotDamaged: a part cannot be read.
        """
        form, read = self.form, self._reader()
        scale = [read(0, f"loss_scale/{k}") for k in range(2)] if form.scaled else []
        return ServerState(
            {i: path for i, (path, _, _) in enumerate(form.variables)},
            self._values(read),
            export_optimizers(self._layout, self._placed(read, "optimizer", form.optimizers)),
            np.array([read(p, f"version/{p}") for p in range(form.num_ps)]),
            LossScaleState(*scale) if scale else None,
            {i: self._growing(buckets, names) for i, buckets, names in form.growing},
        )

    def _growing(self, buckets: list[int], names: list[str]) -> TableState:
        parts = [self._part_of_growing(bucket, names) for bucket in buckets]
        return TableState.joined(
            [TableState(meta, dict(zip(names, rows, strict=True))) for meta, *rows in parts]
        )

    def load_values(self) -> dict[int, np.ndarray]:
        """The values of the variables alone, by variable.

        Raises:
          SnapshotDamaged: a part cannot be read.
        """
        return self._values(self._reader())

    def _values(self, read: Callable[[int, str], np.ndarray]) -> dict[int, np.ndarray]:
        buckets = enumerate(self.form.buckets)
        return self._layout.whole((i, read(b[0], f"value/{i}")) for i, b in buckets)

    def load_outer(self) -> dict[str, AggregationState]:
        """Name of an exchange -> what its outer optimizer kept; no round is open at a cut."""
        read, found = self._reader(), {}
        for k, (name, optimizers) in enumerate(self.form.outer):
            placed = self._placed(read, f"outer/{k}", optimizers)
            outer = export_optimizers(self._layout, placed)
            found[name] = AggregationState(outer, {}, {}, np.zeros([0, 2], np.int32))
        return found

    def _placed(self, read: Callable, prefix: str, optimizers: list) -> list:
        placed = []
        for k, (mine, names) in enumerate(optimizers):
            ps = self.form.buckets[mine[0]][0]
            state = [_Array(read(ps, f"{prefix}/{k}/{s}")) for s in range(len(names))]
            placed.append((_Optimizer(state, [(i, name) for i, name in names]), mine))
        return placed

    def _reader(self) -> Callable[[int, str], np.ndarray]:
        readers: dict[int, Any] = {}

        def read(ps: int, name: str) -> np.ndarray:
            if self._rows.has_column(name):
                return self._rows.column_on_chief(name)
            if ps not in readers:
                readers[ps] = reader_of(self._place.on_chief(ps))
            return checked(readers[ps].get_tensor, f"ps {ps}")(name)

        return read
