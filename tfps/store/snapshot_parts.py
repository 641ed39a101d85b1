"""What is on the servers, written and read by the servers themselves.

At a cut each ps reads its variables. A read shares the variable's memory, and an update of a dense
variable replaces it, so what was read stays as it was while training goes on, and each ps writes
it to a file later, with `SaveV2` from where it is. Nothing of it crosses the network, or comes to
the chief. A state goes back the same way, unless it is laid out in another way now: then the chief
reads the parts, and deals them out by variable.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster.devices import ps_device
from tfps.embeddings.handles import COUNT, KEY, LAST
from tfps.store.growing import TableState
from tfps.store.parameter_store import ParameterStore
from tfps.store.plan import Plan
from tfps.store.server_state import (
    AggregationState,
    Layout,
    LossScaleState,
    Placed,
    ServerState,
    export_optimizers,
)
from tfps.store.snapshot_folder import FILE_ERRORS, Folder, Id


class Held(NamedTuple):
    """A variable on a server.

    Attributes:
      name: under which it is written.
      ps: index of the parameter server.
      variable: `keras.Variable` or `tf.Variable`.
    """

    name: str
    ps: int
    variable: Any


class Values(NamedTuple):
    """What was read on one ps.

    Attributes:
      ps: index of the parameter server.
      names: under which the tensors are written.
      tensors: on the ps.
    """

    ps: int
    names: list[str]
    tensors: list[tf.Tensor]


def held_by(store: ParameterStore, outer: Sequence[Placed] = ()) -> list[Held]:
    """Every variable that a snapshot has of the servers.

    Args:
      store: with the variables.
      outer: the outer optimizers of several exchanges, each with their buckets.
    """
    buckets = store.plan.buckets
    found = [Held(f"value/{i}", buckets[i].ps, v) for i, v in enumerate(store.stored)]
    found += _of_optimizers(store.plan, "optimizer", store.placed())
    for k, placed in enumerate(outer):
        found += _of_optimizers(store.plan, f"outer/{k}", placed)
    found += [Held(f"version/{p}", p, v) for p, v in enumerate(store.versions)]
    if store.loss_scale:
        scale = enumerate(store.loss_scale.variables)
        found += [Held(f"loss_scale/{k}", 0, v) for k, v in scale]
    return found


def _of_optimizers(plan: Plan, prefix: str, placed: Placed) -> list[Held]:
    return [
        Held(f"{prefix}/{k}/{s}", plan.buckets[mine[0]].ps, variable)
        for k, (optimizer, mine) in enumerate(placed)
        for s, variable in enumerate(optimizer.state)
    ]


class Reader:
    """Reads the variables of each ps in one call."""

    def __init__(self) -> None:
        """Traces nothing yet."""
        self._reads: dict[tuple, Callable] = {}

    def read(self, held: Sequence[Held], store: ParameterStore | None = None) -> list[Values]:
        """The values of these variables, on their servers; no worker may push meanwhile.

        Args:
          held: of `held_by`.
          store: of which tables that grow are read, too. They are copied.
        """
        found = []
        growing = {} if store is None else _read_growing(store)
        for ps in sorted({h.ps for h in held}):
            mine = [h for h in held if h.ps == ps]
            dtypes = tuple(tf.as_dtype(h.variable.dtype) for h in mine)
            if (ps, dtypes) not in self._reads:
                read = functools.partial(_read, dtypes)
                function = tf.function(read, autograph=False, jit_compile=False)
                handles = [tf.TensorSpec([], tf.resource)] * len(mine)
                self._reads[ps, dtypes] = function.get_concrete_function(handles)
            with tf.device(ps_device(ps)):
                tensors = self._reads[ps, dtypes]([h.variable.handle for h in mine])
            more = growing.get(ps, {})
            names = [*(h.name for h in mine), *more]
            found.append(Values(ps, names, [*tensors, *more.values()]))
        return found


def _read(dtypes: Sequence[tf.DType], handles: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [
        tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
        for handle, dtype in zip(handles, dtypes, strict=True)
    ]


def _read_growing(store: ParameterStore) -> dict[int, dict[str, tf.Tensor]]:
    """ps -> name -> tensor of the tables that grow."""
    found: dict[int, dict[str, tf.Tensor]] = {}
    for table in store.tables.values():
        names = list(table.names)
        for bucket in table.buckets:
            meta, rows = table.read_part(bucket, names)
            mine = found.setdefault(store.plan.buckets[bucket].ps, {})
            tensors = zip(_names_of_growing(bucket, names), [meta, *rows], strict=True)
            mine |= dict(tensors)
    return found


def _names_of_growing(bucket: int, names: Sequence[str]) -> list[str]:
    return [f"table/{bucket}/meta", *(f"table/{bucket}/rows/{name}" for name in names)]


def write(folder: Folder, id: Id, values: Sequence[Values]) -> list[str]:
    """Lets each ps write what was read there; returns the names of the parts.

    Raises:
      SnapshotFailed: a ps could not write.
      tf.errors.OpError: a ps could not be asked.
    """
    with _all_at_once(len(values)) as run:
        run(functools.partial(_write, folder, id), values)
    return [f"ps-{v.ps}" for v in values]


def _write(folder: Folder, id: Id, values: Values) -> None:
    with tf.device(ps_device(values.ps)), _file_errors(f"ps {values.ps}", errors.SnapshotFailed):
        save(folder.prefix(id, f"ps-{values.ps}"), values.names, values.tensors)


def save(prefix: str, names: Sequence[str], tensors: Sequence[Any]) -> None:
    """Writes tensors to a checkpoint, on the device in scope."""
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )


@dataclasses.dataclass(frozen=True)
class Form:
    """How the variables of a snapshot lie on the servers, in JSON's types.

    Attributes:
      num_ps: number of parameter servers.
      variables: (path, shape, dtype) of each.
      buckets: (ps, dtype, shape, [(variable, begin, end) of each shard]) of each.
      tables: (bucket, begin, end) of each bucket that has rows of a table: its ids.
      optimizers: per server optimizer, ([buckets], [(index among them or None, name) of its
        state]).
      outer: per exchange with an outer optimizer, (its name, its optimizers, likewise).
      scaled: whether there is a loss scale.
      growing: (variable, [buckets], [names of its rows and slots]) of each table that grows.
    """

    num_ps: int
    variables: list
    buckets: list
    tables: list
    optimizers: list
    outer: list
    scaled: bool
    growing: list = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, store: ParameterStore, outer: dict[str, Placed]) -> "Form":
        """The form of what is on the servers.

        Args:
          store: with the variables.
          outer: name of an exchange -> its outer optimizers, each with its buckets.
        """
        plan = store.plan
        tables = []
        for i, table in sorted(plan.of_tables.items()):
            ids = table.exported(i)
            tables.append([i, int(ids[0]), int(ids[-1]) + 1] if len(ids) else [i, 0, 0])
        return cls(
            plan.num_ps,
            [[s.path, [*s.shape], s.dtype] for s in plan.specs],
            [
                [b.ps, b.dtype, [*b.shape], [[s.variable, s.begin, s.end] for s in b.shards]]
                for b in plan.buckets
            ],
            tables,
            _form_of(store.placed()),
            [[name, _form_of(placed)] for name, placed in outer.items()],
            store.loss_scale is not None,
            [[i, [*t.buckets], [*t.names]] for i, t in sorted(store.tables.items())],
        )

    def is_laid_out_as(self, other: "Form") -> bool:
        """Whether all variables of the store lie in the same way; paths do not matter."""

        def essence(form: "Form") -> list:
            shapes = [[shape, dtype] for _, shape, dtype in form.variables]
            rest = [form.num_ps, form.buckets, form.tables, form.optimizers, form.scaled]
            return [shapes, *rest, form.growing]

        return essence(self) == essence(other)


def _form_of(placed: Placed) -> list:
    return [[[*mine], [[k, name] for k, name in o.state_names]] for o, mine in placed]


class _Shard(NamedTuple):
    variable: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


class _Bucket(NamedTuple):
    shape: tuple[int, ...]
    shards: list[_Shard]

    @property
    def size(self) -> int:
        return sum(s.size for s in self.shards)


class _Spec(NamedTuple):
    path: str
    shape: tuple[int, ...]
    size: int


class _Rows(NamedTuple):
    begin: int
    end: int

    def exported(self, bucket: int) -> np.ndarray:
        del bucket
        return np.arange(self.begin, self.end)


class _SavedPlan:
    """What `Layout` needs of a plan."""

    def __init__(self, form: Form):
        self.buckets = [
            _Bucket(tuple(shape), [_Shard(*s) for s in shards])
            for _, _, shape, shards in form.buckets
        ]
        self.specs = [
            _Spec(path, tuple(shape), int(np.prod(shape, dtype=np.int64)))
            for path, shape, _ in form.variables
        ]
        self.of_tables = {i: _Rows(begin, end) for i, begin, end in form.tables}


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

    def __init__(self, folder: Folder, id: Id, form: Form):
        """Reads nothing yet.

        Args:
          folder: of the snapshot.
          id: which snapshot.
          form: what the manifest says of it.
        """
        self._folder, self._id = folder, id
        self.form = form
        self._layout = Layout(_SavedPlan(form))

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
        with _all_at_once(len(every)) as run:
            read = run(lambda one: self._restored(*one), every)
        growing = [
            (store.tables[i], names, bucket)
            for i, buckets, names in self.form.growing
            for bucket in buckets
            if store.plan.buckets[bucket].ps in servers
        ]
        states = [self._part_of_growing(bucket, names, on_ps=True) for _, names, bucket in growing]
        for (ps, held), tensors in zip(every, read, strict=True):
            with tf.device(ps_device(ps)):
                for h, tensor in zip(held, tensors, strict=True):
                    tf.raw_ops.AssignVariableOp(resource=h.variable.handle, value=tensor)
        for (table, names, bucket), (meta, *rows) in zip(growing, states, strict=True):
            with tf.device(ps_device(store.plan.buckets[bucket].ps)):
                keys, counts, lasts = meta[:, KEY], meta[:, COUNT], meta[:, LAST]
            table.clear([bucket])
            table.put_part(bucket, keys, dict(zip(names, rows, strict=True)), counts, lasts)

    def _part_of_growing(self, bucket: int, names: list[str], on_ps: bool = False) -> list:
        """[keys, rows of each name] of a part; on the part's ps, or as arrays."""
        ps, mine = self.form.buckets[bucket][0], _names_of_growing(bucket, names)
        if not on_ps:
            read = self._reader()
            return [read(ps, name) for name in mine]
        with tf.device(ps_device(ps)), _file_errors(f"ps {ps}", errors.SnapshotDamaged):
            return tf.raw_ops.RestoreV2(
                prefix=self._folder.prefix(self._id, f"ps-{ps}"),
                tensor_names=mine,
                shape_and_slices=[""] * len(mine),
                dtypes=[tf.int64, *([tf.float32] * len(names))],
            )

    def _restored(self, ps: int, held: Sequence[Held]) -> list[tf.Tensor]:
        with tf.device(ps_device(ps)), _file_errors(f"ps {ps}", errors.SnapshotDamaged):
            return tf.raw_ops.RestoreV2(
                prefix=self._folder.prefix(self._id, f"ps-{ps}"),
                tensor_names=[h.name for h in held],
                shape_and_slices=[""] * len(held),
                dtypes=[tf.as_dtype(h.variable.dtype) for h in held],
            )

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
            if ps not in readers:
                readers[ps] = reader_of(self._folder.prefix(self._id, f"ps-{ps}"))
            return checked(readers[ps].get_tensor, f"ps {ps}")(name)

        return read


def reader_of(prefix: str) -> Any:
    """Reads tensors of a checkpoint by name, with `get_tensor`.

    Raises:
      SnapshotDamaged: the checkpoint cannot be opened.
    """
    try:
        return tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, OSError, ValueError) as e:
        raise errors.SnapshotDamaged(f"{prefix} cannot be read: {_said(e)}") from e


def checked(read: Callable[[str], Any], who: str) -> Callable[[str], np.ndarray]:
    """Lets a function that reads tensors by name raise `SnapshotDamaged` where it cannot."""

    def call(name: str) -> np.ndarray:
        try:
            return np.asarray(read(name))
        except (tf.errors.OpError, RuntimeError) as e:  # The reader's errors have no class.
            raise errors.SnapshotDamaged(f"{who}: {_said(e)}") from e

    return call


@contextlib.contextmanager
def _file_errors(who: str, kind: type[errors.Error]) -> Iterator[None]:
    """Turns an error about files into one of ours; an error about servers stays."""
    try:
        yield
    except FILE_ERRORS as e:
        raise kind(f"{who}: {_said(e)}") from e


def _said(error: BaseException) -> str:
    return errors.summary(getattr(error, "message", None) or str(error))


@contextlib.contextmanager
def _all_at_once(count: int) -> Iterator[Callable]:
    """Gives a function that calls another one for each of several things, in threads.

    Each thread has an executor of its own, so that the errors of one are not those of another.
    """

    def isolated(function: Callable, one: Any) -> Any:
        with _tf.own_executor():
            return function(one)

    with concurrent.futures.ThreadPoolExecutor(max(1, count)) as pool:
        yield lambda function, every: list(pool.map(functools.partial(isolated, function), every))
