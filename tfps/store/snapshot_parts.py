"""What is on the servers, written by the servers themselves; all but the rows of large tables.

At a cut each ps reads its variables. A read shares the variable's memory, and an update of a dense
variable replaces it, so what was read stays as it was while training goes on, and each ps writes
it to a file later, with `SaveV2` from where it is. Nothing of it crosses the network, or comes to
the chief. A state goes back the same way, unless it is laid out in another way now: then the chief
reads the parts, and deals them out by variable.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfps import errors
from tfps.cluster.devices import ps_device
from tfps.store.parameter_store import ParameterStore
from tfps.store.plan import Plan
from tfps.store.server_state import Placed
from tfps.store.snapshot_calls import all_at_once, file_errors, save
from tfps.store.snapshot_places import Hosts, Place


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


def columns_of(store: ParameterStore, bucket: int) -> list[str]:
    """Under which names the columns of one of the store's `large.pieces` are written."""
    if bucket in store.growing:
        (table,) = [t for t in store.tables.values() if bucket in t.buckets]
        return names_of_growing(bucket, list(table.names))
    (k,) = [k for k, (_, mine) in enumerate(store.placed()) if mine == [bucket]]
    by_row = enumerate(store.row_optimizers[bucket].by_row)
    return [f"value/{bucket}", *(f"optimizer/{k}/{s}" for s, has_rows in by_row if has_rows)]


def held_by(store: ParameterStore, outer: Sequence[Placed] = (), whole: bool = True) -> list[Held]:
    """Every variable that a snapshot has of the servers, but for tables that grow.

    Args:
      store: with the variables.
      outer: the outer optimizers of several exchanges, each with their buckets.
      whole: whether the rows of large dense tables are among them.
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
    dense = [b for b in store.large.pieces if b not in store.growing]
    left_out = set() if whole else {name for b in dense for name in columns_of(store, b)}
    return [one for one in found if one.name not in left_out]


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

    def read(self, held: Sequence[Held]) -> list[Values]:
        """The values of these variables, on their servers; no worker may push meanwhile.

        Args:
          held: of `held_by`.
        """
        found = []
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
            found.append(Values(ps, [h.name for h in mine], tensors))
        return found


def _read(dtypes: Sequence[tf.DType], handles: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [
        tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
        for handle, dtype in zip(handles, dtypes, strict=True)
    ]


def names_of_growing(bucket: int, names: Sequence[str]) -> list[str]:
    """Under which names a part of a table that grows is written.

    Args:
      bucket: of the part.
      names: of its rows and slots; see `GrowingTable`.
    """
    return [f"table/{bucket}/meta", *(f"table/{bucket}/rows/{name}" for name in names)]


def write(place: Place, values: Sequence[Values]) -> list[str]:
    """Lets each ps write what was read there; returns the names of the parts.

    Raises:
      SnapshotFailed: a ps could not write.
      tf.errors.OpError: a ps could not be asked.
    """
    with all_at_once(len(values)) as run:
        run(functools.partial(_write, place), values)
    return [f"ps-{v.ps}" for v in values]


def _write(place: Place, values: Values) -> None:
    ps = values.ps
    with tf.device(ps_device(ps)), file_errors(f"ps {ps}", errors.SnapshotFailed):
        place.prepare(ps)
        save(place.prefix(ps), values.names, values.tensors)


def settle(
    place: Hosts,
    more: Mapping[int, Sequence[str]],
    copies: int,
    hosts: Sequence[str],
) -> None:
    """Copies parts that are written to other hosts.

    Args:
      place: of the parts.
      more: ps -> see `Hosts.settle`; it has every ps.
      copies, hosts: see `Hosts.settle`.
    """
    servers = list(more)

    def settle_one(ps: int) -> None:
        with file_errors(f"ps {ps}", errors.SnapshotFailed):
            place.settle(ps, copies, hosts, more[ps])

    with all_at_once(len(servers)) as run:
        run(settle_one, servers)
