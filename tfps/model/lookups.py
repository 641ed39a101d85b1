"""Looking up rows of a variable instead of reading the whole variable."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, TypeAlias

import keras
import tensorflow as tf

from tfps import _keras_creation, errors

# From ids, integers of any shape, to their rows: a tensor [*ids.shape, ...].
Find: TypeAlias = Callable[[tf.Tensor], tf.Tensor]


class Rows(NamedTuple):
    """The rows of a table that a batch looks up, in place of the whole table.

    Attributes:
      values: [n, ...], the rows that the batch looks up, then zeros. n is the number of ids in the
        batch, so that XLA sees the same shape for every batch.
      positions: for each lookup, in the order in which the model makes them, the index in `values`
        of each id's row; an integer tensor of the shape of the ids.
    """

    values: tf.Tensor
    positions: list[tf.Tensor]


class Lookups:
    """A context in which `tf.gather` from one variable calls a function instead.

    `tf.gather`, and what is built on `tf.gather` (`keras.ops.take` and the Embedding layer), ask
    their operand for a method `sparse_read`, with which TensorFlow's own variables read single
    rows where the rows live. Within the context the variable has such a method.

    Attributes:
      ids: the ids of the lookups so far, in the order of the lookups.
    """

    def __init__(self, variable: keras.Variable, find: Find):
        """Prepares the context.

        Args:
          variable: the variable whose rows are looked up.
          find: what a lookup calls in place of `tf.gather`.
        """
        self._variable = variable
        self._find = find
        self.ids: list[tf.Tensor] = []

    def __enter__(self) -> "Lookups":
        self._variable.sparse_read = self._read
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._variable.sparse_read

    def _read(self, ids, name=None):
        del name
        self.ids.append(ids)
        return _keras_creation.autocast(self._variable, self._find(ids))


@contextlib.contextmanager
def looking_up(
    variables: Sequence[keras.Variable], finds: Mapping[int, Find]
) -> Iterator[dict[int, Lookups]]:
    """A context in which lookups in several tables call functions instead.

    Args:
      variables: the model's trainable variables.
      finds: index of a variable -> what its lookups call.

    Yields:
      Index of a variable -> its `Lookups`.
    """
    with contextlib.ExitStack() as stack:
        yield {i: stack.enter_context(Lookups(variables[i], find)) for i, find in finds.items()}


@contextlib.contextmanager
def reading_rows(
    variables: Sequence[keras.Variable], values: Sequence[tf.Tensor | Rows]
) -> Iterator[list[tf.Tensor]]:
    """A context in which lookups in tables read the rows that were pulled.

    Args:
      variables: the model's trainable variables.
      values: a tensor for each variable, or `Rows` for a table.

    Yields:
      `values`, with a stand-in of the table's shape in place of each `Rows`.

    Raises:
      ConfigError: a table was used as a whole, which only the stand-in would have answered.
    """
    rows = {i: value for i, value in enumerate(values) if isinstance(value, Rows)}
    stand_ins = {
        i: tf.fill(v.shape, tf.zeros([], v.dtype)) for i, v in enumerate(variables) if i in rows
    }
    with looking_up(variables, {i: _next_of(value) for i, value in rows.items()}):
        yield [stand_ins.get(i, value) for i, value in enumerate(values)]
    for i, value in stand_ins.items():
        if value.consumers():
            raise errors.ConfigError(
                f"{variables[i].path} is only looked up in training, but used as a whole in "
                "evaluation or prediction; give it a regularizer or constraint, or use it whole in "
                "training too"
            )


def _next_of(rows: Rows) -> Find:
    """Answers the lookups of one table in the order in which the model makes them."""
    positions = iter(rows.positions)
    return lambda ids: tf.gather(rows.values, next(positions))


def depends(tensor: tf.Tensor, inputs: set[int]) -> bool:
    """Whether a tensor of a graph is computed from any of these operations.

    Args:
      tensor: the tensor.
      inputs: `id`s of the operations.
    """
    todo, seen = [tensor.op], set()
    while todo:
        op = todo.pop()
        if id(op) in inputs:
            return True
        if id(op) not in seen:
            seen.add(id(op))
            todo += [t.op for t in op.inputs] + list(op.control_inputs)
    return False
