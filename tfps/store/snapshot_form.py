"""How what a snapshot has of the servers lay there, in JSON's types."""

import dataclasses
from typing import NamedTuple

import numpy as np

from tfps.store.parameter_store import ParameterStore
from tfps.store.server_state import Placed


class RowFiles(NamedTuple):
    """Which files have the rows of one part of a table.

    Attributes:
      names: under which the columns of its rows are written.
      limit: all row numbers are below it.
      chain: (incarnation, number, files) of each snapshot that has some of the rows, and how many
        files these are. The first one has all rows of its time, and each later one those that had
        changed since the one before; a row of a later file counts.
    """

    names: list[str]
    limit: int
    chain: list[list[int]]


def suffix_of(bucket: int, k: int) -> str:
    """What the name of a file of rows has after the name of the part of its ps."""
    return f".rows-{bucket}-{k:05d}"


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
      rows: bucket, as text -> `RowFiles`, in JSON's types, of the parts of tables whose rows are in
        files of their own.
    """

    num_ps: int
    variables: list
    buckets: list
    tables: list
    optimizers: list
    outer: list
    scaled: bool
    growing: list = dataclasses.field(default_factory=list)
    rows: dict = dataclasses.field(default_factory=dict)

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


class SavedPlan:
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
