"""The optimizer's state on a parameter server: of whole buckets, and of tables by rows."""

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfps import _keras_creation
from tfps.model import optimizer_traits
from tfps.model.frozen_adam import Frozen
from tfps.model.optimizer_set import ONCE, AnyOptimizer, OptimizerSet
from tfps.model.stateless_optimizer import StatelessOptimizer
from tfps.model.stateless_set import StatelessSet


def slots(optimizer: keras.optimizers.Optimizer) -> Callable[[tuple[int, ...]], float]:
    """How many values the optimizer keeps for each element of a variable.

    Returns:
      A function of the variable's shape. For optimizers that are not elementwise the number is an
      estimate, from a smaller variable of the same rank.
    """
    known: dict[tuple[int, ...], float] = {}
    elementwise = optimizer_traits.is_elementwise(optimizer)

    def count(shape):
        # An elementwise optimizer treats all elements alike, so it is built once.
        small = (1,) * bool(shape) if elementwise else tuple(min(n, 8) for n in shape)
        if small not in known:
            variable = keras.Variable(tf.zeros(small), name="probe")
            probe = StatelessOptimizer(optimizer, [variable], [False])
            elements = sum(math.prod(v.shape) for v in probe.state if len(v.shape))
            known[small] = elements / max(1, math.prod(small))
        return known[small]

    return count


class ServerOptimizer:
    """The optimizer of one parameter server, built on the server's buckets.

    Attributes:
      variables: all Keras variables that the constructor made, on the device on which it ran.
      state: the state of the optimizer (iterations and slots), in the order in which `apply` takes
        and returns its values: Keras variables.
      state_names: see `StatelessOptimizer`.
    """

    def __init__(
        self,
        optimizer: AnyOptimizer,
        variables: Sequence[keras.Variable],
        decayed: Sequence[bool],
        owners: Sequence[int] = (),
        calls: Sequence[tuple[int, ...]] = (),
    ):
        """Creates the state on the current device.

        Args:
          optimizer: the optimizer that the model was compiled with, see `StatelessOptimizer`; or
            several.
          variables: one for each bucket.
          decayed: per variable, whether weight decay applies.
          owners: per variable, the index of its optimizer in a set.
          calls: per variable, which calls of its optimizer concern it; likewise.
        """
        self._function: StatelessOptimizer | StatelessSet
        if isinstance(optimizer, OptimizerSet):
            self._function = StatelessSet(optimizer, owners, variables, decayed, calls)
        else:
            self._function = StatelessOptimizer(optimizer, variables, decayed)
        self.variables = self._function.variables
        self.state = self._function.state
        self.state_names = self._function.state_names

    @property
    def handles(self) -> list[tf.Tensor]:
        """The resource handles of the state."""
        return [v.value.handle for v in self.state]

    @property
    def iterations(self) -> keras.Variable:
        """The number of calls of `apply` on this server, an int32 scalar of the state."""
        return self.state[self._function.iterations]

    def count(self, state: Sequence[tf.Tensor]) -> tf.Tensor:
        """What counts calls of `apply`, an integer scalar, among values or handles of `state`."""
        return state[self._function.iterations]

    def count_of(self, k: int, state: Sequence[tf.Tensor]) -> tf.Tensor | None:
        """`count` of optimizer `k` of a set; None if it has no variable on this server.

        Without a set there is one optimizer, whatever `k`.
        """
        if isinstance(self._function, StatelessOptimizer):
            return self.count(state)
        place = self._function.counts.get(k)
        return None if place is None else state[place]

    @property
    def averages(self) -> list[keras.Variable | None]:
        """Per variable, its moving average or None; empty if the optimizer has none."""
        return [None if i is None else self.state[i] for i in self._function.averages]

    def apply(
        self,
        values: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        scale: tf.Tensor | None = None,
        frozen: Frozen | None = None,
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Computes one update of the buckets as a pure function; see `StatelessOptimizer.apply`."""
        return self._function.apply(values, state, gradients, learning_rate, scale, frozen)


class RowOptimizer(ServerOptimizer):
    """The optimizer of one table, which updates some rows as if there were no other rows.

    `apply` takes and returns these rows of the table and of the slots, tensors [rows, width].

    Attributes:
      variables: the Keras variables of one row, with which `apply` was built.
      state: the state of all rows: `tf.Variable`s on the device on which the constructor ran.
      by_row: per state variable, whether it has a row for each row of the table.
      begin: per state variable with rows, the row that each of them begins with, an array; None for
        the others.
    """

    def __init__(
        self,
        optimizer: AnyOptimizer,
        shape: tuple[int, ...],
        dtype: str,
        decayed: bool,
        owner: int = 0,
        calls: tuple[int, ...] = ONCE,
    ):
        """Creates the state on the current device.

        Args:
          optimizer: an elementwise optimizer, see `StatelessOptimizer`; or several.
          shape, dtype: of the table.
          decayed: whether weight decay applies to the table.
          owner: the index of the table's optimizer in a set.
          calls: which calls of this optimizer concern the table.
        """
        # One row tells the state of every row: an elementwise optimizer starts all rows alike.
        row = keras.Variable(tf.zeros((1, *shape[1:]), dtype), name="row")
        super().__init__(optimizer, [row], [decayed], [owner], [calls])
        of_row = self._function.state
        self.by_row = [v.shape == row.shape for v in of_row]
        self.begin = [
            v.numpy()[0] if by_row else None for v, by_row in zip(of_row, self.by_row, strict=True)
        ]
        self.state = [
            tf.Variable(
                tf.broadcast_to(v.value, shape) if by_row else v.value,
                trainable=False,
                name=v.name,
            )
            for v, by_row in zip(of_row, self.by_row, strict=True)
        ]
        for v, by_row in zip([row, *of_row], [True, *self.by_row], strict=True):
            if by_row:
                _keras_creation.forget_rows(v)

    @property
    def handles(self) -> list[tf.Tensor]:
        """The resource handles of the state."""
        return [v.handle for v in self.state]
