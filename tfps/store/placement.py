"""Which elements of which variable live on which parameter server."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class VariableSpec:
    """What placement needs to know of a variable.

    Attributes:
      path: its Keras path, such as `decoder/dense/kernel`.
      shape: tuple of ints.
      dtype: numpy-style name of the element type.
      splittable: whether a partitioner may split it.
      slots: number of values that the optimizer keeps for each of the variable's.
      by_rows: whether only rows of it travel; it is then no load for the network.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    splittable: bool = True
    slots: float = 0.0
    by_rows: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return tf.as_dtype(self.dtype).size

    @property
    def nbytes(self) -> int:
        """Bytes of the value."""
        return self.size * self.itemsize

    def load(self, elements: int) -> float:
        """Bytes that so many elements take on a ps, with the optimizer's state."""
        return elements * self.itemsize * (1 + self.slots)


@dataclasses.dataclass(frozen=True)
class Shard:
    """The elements [begin, end) of a variable, in row-major order, on one ps.

    Attributes:
      variable: index of the variable.
      begin, end: the first element, and the one after the last.
      ps: index of the parameter server.
    """

    variable: int
    begin: int
    end: int
    ps: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.end - self.begin


@dataclasses.dataclass(frozen=True)
class PlacedShard:
    """A row of the placement table.

    Attributes:
      variable: path.
      shard: which of the variable's shards, from 0.
      shards: how many shards the variable has.
      ps: index of the parameter server.
      bytes: bytes of the values.
      state_bytes: bytes of what the optimizer keeps for the values.
    """

    variable: str
    shard: int
    shards: int
    ps: int
    bytes: int
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which part of which variable is on which parameter server.

    Attributes:
      rows: `PlacedShard`s by variable and shard.
      num_ps: number of parameter servers.
    """

    rows: list[PlacedShard]
    num_ps: int

    @classmethod
    def of(cls, specs: Sequence[VariableSpec], shards: Sequence[Shard], num_ps: int) -> "Placement":
        """From what `place` returned."""
        count = collections.Counter(s.variable for s in shards)
        seen: collections.Counter = collections.Counter()
        rows = []
        for s in shards:
            spec = specs[s.variable]
            nbytes = s.size * spec.itemsize
            state = round(spec.load(s.size)) - nbytes
            rows.append(
                PlacedShard(spec.path, seen[s.variable], count[s.variable], s.ps, nbytes, state)
            )
            seen[s.variable] += 1
        return cls(rows, num_ps)

    @property
    def bytes_by_ps(self) -> list[int]:
        """Values and optimizer state on each ps."""
        total = [0] * self.num_ps
        for row in self.rows:
            total[row.ps] += row.bytes + row.state_bytes
        return total

    @property
    def imbalance(self) -> float:
        """Bytes of the fullest ps over the mean; 1.0 is perfect."""
        total = self.bytes_by_ps
        return max(total) * self.num_ps / sum(total) if sum(total) else 1.0

    def markdown(self) -> str:
        """The table in Markdown, for TensorBoard."""
        lines = ["| variable | shard | ps | bytes | optimizer state |", "|---|---|---:|---:|---:|"]
        lines += [
            f"| {r.variable} | {r.shard + 1} of {r.shards} | {r.ps} | {r.bytes:,} "
            f"| {r.state_bytes:,} |"
            for r in self.rows
        ]
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """One line: bytes on each ps, and the imbalance."""
        total = ", ".join(f"ps {p} {b / 2**20:.1f} MiB" for p, b in enumerate(self.bytes_by_ps))
        return f"{total}, optimizer state included; fullest/mean {self.imbalance:.3f}"

    def __str__(self) -> str:
        width = max((len(r.variable) for r in self.rows), default=8)
        lines = [f"{'variable':{width}}  shard  ps         bytes  optimizer state"]
        lines += [
            f"{r.variable:{width}}  {r.shard + 1:>2}/{r.shards:<2}  {r.ps:>2}  {r.bytes:>12,}  "
            f"{r.state_bytes:>15,}"
            for r in self.rows
        ]
        return "\n".join([*lines, self.summary()])


def place(
    specs: Sequence[VariableSpec], num_ps: int, partitioner: Callable | None = None
) -> list[Shard]:
    """Splits the variables and gives every shard to a ps.

    The largest shard goes first, always to the ps with the fewest bytes so far. (TensorFlow's
    strategy places variables in turn, whatever their size.) Tables of which only rows travel come
    after all other variables, so that the network's load is spread evenly and the tables even out
    the memory. A partitioner that has a method `place(specs, num_ps)` decides by itself.

    Args:
      specs: the variables.
      num_ps: number of parameter servers.
      partitioner: a `tf.distribute.experimental.partitioners.Partitioner`.

    Returns:
      Shards in the order of the variables and, within one, of its rows.
    """
    if partitioner is not None and hasattr(partitioner, "place"):
        return partitioner.place(specs, num_ps)
    pieces = [
        (i, begin, end) for i, spec in enumerate(specs) for begin, end in _split(spec, partitioner)
    ]
    total = [0.0] * num_ps
    shards = []
    for by_rows in (False, True):
        mine = [piece for piece in pieces if specs[piece[0]].by_rows == by_rows]
        chosen, total = lightest_first([specs[i].load(e - b) for i, b, e in mine], total)
        shards += [Shard(i, b, e, p) for (i, b, e), p in zip(mine, chosen, strict=True)]
    return sorted(shards, key=lambda s: (s.variable, s.begin))


def lightest_first(loads: Sequence[float], total: Sequence[float]) -> tuple[list[int], list[float]]:
    """Gives each piece to the ps with the smallest load so far, the largest piece first.

    Graham, "Bounds on Multiprocessing Timing Anomalies" (1969): no ps gets more
    than the mean and the largest piece.

    Args:
      loads: the load of each piece.
      total: the load that each ps has already.

    Returns:
      (the ps of each piece, the load of each ps).
    """
    total = list(total)
    chosen = [0] * len(loads)
    for k in sorted(range(len(loads)), key=lambda k: (-loads[k], k)):
        chosen[k] = int(np.argmin(total))
        total[chosen[k]] += loads[k]
    return chosen, total


def rows_dealt(rows: int, shards: int) -> list[tuple[int, int]]:
    """(begin, end) of ranges of rows that differ by one row at most, longer ranges first.

    TensorFlow's strategy splits variables in the same way.
    """
    ends = np.cumsum([rows // shards + (1 if i < rows % shards else 0) for i in range(shards)])
    return [(int(b), int(e)) for b, e in zip([0, *ends[:-1]], ends, strict=True)]


def _split(spec: VariableSpec, partitioner: Callable | None) -> list[tuple[int, int]]:
    """Element ranges of the shards."""
    if partitioner is None or not spec.splittable or not spec.shape or not spec.size:
        return [(0, spec.size)]
    shards = partitioner(shape=tf.TensorShape(spec.shape), dtype=tf.as_dtype(spec.dtype))[0]
    rows = spec.shape[0]
    row = spec.size // rows
    shards = max(1, min(int(shards), rows))
    return [(begin * row, end * row) for begin, end in rows_dealt(rows, shards)]
