"""Which elements of which variable live on which parameter server."""

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
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    splittable: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return tf.as_dtype(self.dtype).size

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize


@dataclasses.dataclass(frozen=True)
class Shard:
    """The elements [begin, end) of a variable, in row-major order, on one ps.

    Attributes:
      variable: index of the variable.
      begin, end: element range; a shard of rows is contiguous.
      ps: index of the parameter server.
    """

    variable: int
    begin: int
    end: int
    ps: int

    @property
    def size(self) -> int:
        return self.end - self.begin


def place(
    specs: Sequence[VariableSpec], num_ps: int, partitioner: Callable | None = None
) -> list[Shard]:
    """Splits the variables and gives every shard to a ps.

    The largest shard goes first, always to the ps with the fewest bytes so far.
    (TensorFlow's strategy deals variables out in turn, whatever their size.)

    Args:
      specs: the variables.
      num_ps: number of parameter servers.
      partitioner: a `tf.distribute.experimental.partitioners.Partitioner`.

    Returns:
      Shards in the order of the variables and, within one, of its rows.
    """
    pieces = [
        (i, begin, end) for i, spec in enumerate(specs) for begin, end in _split(spec, partitioner)
    ]
    nbytes = [(end - begin) * specs[i].itemsize for i, begin, end in pieces]
    load = [0] * num_ps
    chosen = {}
    for k in sorted(range(len(pieces)), key=lambda k: (-nbytes[k], k)):
        chosen[k] = int(np.argmin(load))
        load[chosen[k]] += nbytes[k]
    return [Shard(i, begin, end, chosen[k]) for k, (i, begin, end) in enumerate(pieces)]


def _split(spec: VariableSpec, partitioner: Callable | None) -> list[tuple[int, int]]:
    """Element ranges of the shards; rows are dealt as TensorFlow's strategy does."""
    if partitioner is None or not spec.splittable or not spec.shape or not spec.size:
        return [(0, spec.size)]
    shards = partitioner(shape=tf.TensorShape(spec.shape), dtype=tf.as_dtype(spec.dtype))[0]
    rows = spec.shape[0]
    shards = max(1, min(int(shards), rows))
    row = spec.size // rows
    ends = np.cumsum([rows // shards + (1 if i < rows % shards else 0) for i in range(shards)])
    return [(int(b) * row, int(e) * row) for b, e in zip([0, *ends[:-1]], ends, strict=True)]
