"""Looking up rows of a variable in place of reading all of it."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from tfps import _keras


class Rows(NamedTuple):
    """Stands for a table in a step.

    Attributes:
      values: [n, ...], the rows that the batch looks up, then zeros: n is the number
        of ids in the batch, so that XLA sees the same shape for every batch.
      positions: for each lookup, in the order in which the model makes them, where
        in `values` each id's row is; of the shape of the ids.
    """

    values: tf.Tensor
    positions: list[tf.Tensor]


class Lookups:
    """While it is entered, takes the place of `tf.gather` from one variable.

    `tf.gather` and what is built on it, `keras.ops.take` and the Embedding layer,
    ask their operand for a method `sparse_read`, by which TensorFlow's own
    variables read single rows where they live.

    Attributes:
      ids: of the lookups so far.
    """

    def __init__(self, variable: keras.Variable, find: Callable[[tf.Tensor], tf.Tensor]):
        self._variable = variable
        self._find = find
        self.ids: list[tf.Tensor] = []

    def __enter__(self):
        self._variable.sparse_read = self._read
        return self

    def __exit__(self, *exception):
        del self._variable.sparse_read

    def _read(self, ids, name=None):
        del name
        self.ids.append(ids)
        return _keras.autocast(self._variable, self._find(ids))


def depends(tensor: tf.Tensor, inputs: set[int]) -> bool:
    """Whether a tensor of a graph is computed from any of these operations."""
    todo, seen = [tensor.op], set()
    while todo:
        op = todo.pop()
        if id(op) in inputs:
            return True
        if id(op) not in seen:
            seen.add(id(op))
            todo += [t.op for t in op.inputs] + list(op.control_inputs)
    return False
