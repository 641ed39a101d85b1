"""What the servers must remember, as NumPy arrays that do not depend on how it is laid out there.

Arrays are kept by variable, not by bucket: the state of one store can be restored into another
one with another number of parameter servers, another partitioner or another size of buckets. A
variable is named by its index among the plan's variables (the model's trainable variables, then
its state), because Keras numbers the paths of layers anew in each process.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from tfps import errors
from tfps.model.server_optimizer import ServerOptimizer
from tfps.store.growing import TableState


class OptimizerState(NamedTuple):
    """What an optimizer keeps on the servers.

    Attributes:
      slots: variable -> name of the slot -> its array. The name is that of the attribute in which
        the Keras optimizer keeps its slots, without the underscore, such as "momentums". Slots of
        elementwise optimizers have the variable's shape.
      scalars: name -> array, for what belongs to no variable, such as "iterations". If servers
        disagree, these are the scalars of the one with the most iterations.
    """

    slots: dict[int, dict[str, np.ndarray]]
    scalars: dict[str, np.ndarray]


class LossScaleState(NamedTuple):
    """The dynamic loss scale.

    Attributes:
      scale: float32 scalar.
      good_steps: int32 scalar, steps without an overflow since the scale last changed.
    """

    scale: np.ndarray
    good_steps: np.ndarray


class ServerState(NamedTuple):
    """What a `ParameterStore` keeps.

    Attributes:
      paths: variable -> its Keras path in the process that exported; for people only.
      values: variable -> its value, of the variable's shape and dtype.
      optimizer: of the compiled optimizer; empty if the store was made for evaluation alone.
      versions: int64 [ps], updates that each ps made. A store with another number of servers
        gives the largest to all of them.
      loss_scale: none if the loss is not scaled dynamically.
      tables: variable -> the keys of a table that grows, with their rows and slots; `values` and
        `optimizer` have no rows of it.
    """

    paths: dict[int, str]
    values: dict[int, np.ndarray]
    optimizer: OptimizerState
    versions: np.ndarray
    loss_scale: LossScaleState | None
    tables: Mapping[int, TableState] = MappingProxyType({})


class AggregationState(NamedTuple):
    """What an `Aggregation` keeps beside the store.

    Attributes:
      outer: of the outer optimizer of `LocalSteps`; empty without one.
      sums: variable -> the sum of the open round's pushes; empty outside of rounds.
      touched: variable that is updated by rows -> bool [rows], which rows the round pushed.
      counts: int32 [ps, 2], the open round's pushes: how many came, and of how many the gradients
        did not overflow; [0, 2] outside of rounds. If the number of servers changes, all of them
        get the largest.
    """

    outer: OptimizerState
    sums: dict[int, np.ndarray]
    touched: dict[int, np.ndarray]
    counts: np.ndarray


class LaidOut(Protocol):
    """What a `Layout` needs of a plan.

    Attributes:
      buckets, specs, of_tables: see `Plan`.
    """

    buckets: Any
    specs: Any
    of_tables: Any


class Layout:
    """Translates between arrays of buckets and arrays of variables."""

    def __init__(self, plan: LaidOut):
        """Reads a plan.

        Args:
          plan: which shards lie in which bucket.
        """
        self._plan = plan

    def whole(self, arrays: Iterable[tuple[int, np.ndarray]]) -> dict[int, np.ndarray]:
        """Arrays of the variables that lie in these buckets.

        Args:
          arrays: (bucket, its array), of all buckets that hold parts of the same variables. It has
            the bucket's shape; or, for a table's bucket, an entry for each row; or any shape, if
            the bucket is one whole variable.
        """
        found: dict[int, np.ndarray] = {}
        for i, array in arrays:
            bucket = self._plan.buckets[i]
            table = self._plan.of_tables.get(i)
            if table and array.shape[:1] == bucket.shape[:1]:
                variable = bucket.shards[0].variable
                shape = (self._plan.specs[variable].shape[0], *array.shape[1:])
                whole = found.setdefault(variable, np.empty(shape, array.dtype))
                whole[_span(table.exported(i))] = array
            elif array.shape != bucket.shape:
                found[self._only(i)] = array
            else:
                flat, offset = array.reshape([-1]), 0
                for s in bucket.shards:
                    shape = self._plan.specs[s.variable].shape
                    whole = found.setdefault(s.variable, np.empty(shape, array.dtype))
                    whole.reshape([-1])[s.begin : s.end] = flat[offset : offset + s.size]
                    offset += s.size
        return found

    def part(self, i: int, whole: Mapping[int, np.ndarray]) -> np.ndarray:
        """The array of a bucket: the inverse of `whole`.

        Args:
          i: the bucket.
          whole: variable -> array, of all variables of which the bucket holds a part.
        """
        bucket = self._plan.buckets[i]
        first = bucket.shards[0].variable
        table = self._plan.of_tables.get(i)
        if table and whole[first].shape[:1] == self._plan.specs[first].shape[:1]:
            return whole[first][_span(table.exported(i))]
        shapes = {s.variable: self._plan.specs[s.variable].shape for s in bucket.shards}
        if any(whole[v].shape != shape for v, shape in shapes.items()):
            return whole[self._only(i)]
        pieces = [whole[s.variable].reshape([-1])[s.begin : s.end] for s in bucket.shards]
        return np.concatenate(pieces).reshape(bucket.shape)

    def _only(self, i: int) -> int:
        bucket = self._plan.buckets[i]
        variable = bucket.shards[0].variable
        spec = self._plan.specs[variable]
        if bucket.size != spec.size or len(bucket.shards) != 1:
            raise errors.ConfigError(
                f"{spec.path} {spec.shape} shares its servers' variables with others or is split, "
                "but its optimizer keeps something of another shape; use an elementwise optimizer "
                "or no variable_partitioner"
            )
        return variable


def _span(ids: np.ndarray) -> np.ndarray | slice:
    """Ids of rows, as a slice if they follow one another: no copy of the rows is made then."""
    if len(ids) and ids[-1] - ids[0] + 1 == len(ids) and (np.diff(ids) == 1).all():
        return slice(int(ids[0]), int(ids[-1]) + 1)
    return ids


Placed = Sequence[tuple[ServerOptimizer, Sequence[int]]]


def export_optimizers(layout: Layout, placed: Placed) -> OptimizerState:
    """Reads optimizers that share the work of one.

    Args:
      layout: of the plan.
      placed: each optimizer with the buckets that it was built on.
    """
    arrays: dict[str, dict[int, np.ndarray]] = {}
    scalars: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}  # the iterations with which the scalars were read
    for optimizer, mine in placed:
        own: dict[str, np.ndarray] = {}
        for variable, (k, name) in zip(optimizer.state, optimizer.state_names, strict=True):
            if k is None:
                own[name] = np.asarray(variable.numpy())
            else:
                arrays.setdefault(name, {})[mine[k]] = np.asarray(variable.numpy())
        for name, array in own.items():
            # Each optimizer has iterations of its own, and so has each of a set.
            count = f"{name.rpartition('/')[0]}/iterations".lstrip("/")
            if name not in scalars or own[count] > counts[count]:
                scalars[name] = array
        counts |= {name: scalars[name] for name in own if name.endswith("iterations")}
    slots: dict[int, dict[str, np.ndarray]] = {}
    for name, by_bucket in arrays.items():
        for i, array in layout.whole(by_bucket.items()).items():
            slots.setdefault(i, {})[name] = array
    return OptimizerState(slots, scalars)


def restore_optimizers(layout: Layout, placed: Placed, state: OptimizerState) -> None:
    """Writes what `export_optimizers` read, in whatever way the buckets lie now.

    Args:
      layout: of the plan.
      placed: see `export_optimizers`.
      state: of the same optimizer.

    Raises:
      ConfigError: the state is of another optimizer.
    """
    for optimizer, mine in placed:
        for variable, (k, name) in zip(optimizer.state, optimizer.state_names, strict=True):
            slots = {i: own[name] for i, own in state.slots.items() if name in own}
            try:
                array = state.scalars[name] if k is None else layout.part(mine[k], slots)
            except KeyError:
                held = sorted({*state.scalars, *(n for own in state.slots.values() for n in own)})
                raise errors.ConfigError(
                    f"the state has {', '.join(held) or 'no slots'}, but the optimizer needs "
                    f"{name} for every variable; compile the model as it was at the export"
                ) from None
            variable.assign(array)


def spread(per_ps: np.ndarray, num_ps: int) -> np.ndarray:
    """Numbers of servers, [ps, ...], for another number of servers: each gets the largest."""
    if len(per_ps) == num_ps or not len(per_ps):
        return per_ps
    return np.repeat(per_ps.max(axis=0, keepdims=True), num_ps, axis=0)
