"""The optimizers of a set as one pure function."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfps.model import optimizer_traits
from tfps.model.frozen_adam import Frozen
from tfps.model.optimizer_set import OptimizerSet
from tfps.model.stateless_optimizer import StatelessOptimizer


class StatelessSet:
    """A `StatelessOptimizer` in which each optimizer of a set updates its own variables.

    Attributes:
      variables, state, iterations: see `StatelessOptimizer`; the iterations of the first optimizer
        that has a variable here. The learning rates that can be set are part of the state.
      counts: the index of an optimizer that has a variable here -> that of its iterations in
        `state`.
      state_names: likewise; what belongs to no variable has the index of its optimizer before its
        name, such as "0/iterations".
      averages: per variable, the index in `state` of its moving average; None if it has none.
    """

    def __init__(
        self,
        optimizers: OptimizerSet,
        owners: Sequence[int],
        variables: Sequence[keras.Variable],
        decayed: Sequence[bool],
        calls: Sequence[tuple[int, ...]],
    ):
        """Clones the optimizers and builds their state on the current device.

        Args:
          optimizers: the set.
          owners: per variable, the index of its optimizer.
          variables, decayed: see `StatelessOptimizer`.
          calls: per variable, which calls of its optimizer concern it.
        """
        self._members: list[tuple[list[int], StatelessOptimizer]] = []
        self.variables: list[keras.Variable] = []
        self.state: list[keras.Variable] = []
        self.state_names: list[tuple[int | None, str]] = []
        self.averages: list[int | None] = [None] * len(variables)
        self.counts: dict[int, int] = {}
        for k in sorted(set(owners)):
            mine = [i for i, owner in enumerate(owners) if owner == k]
            one = StatelessOptimizer(
                optimizers.optimizers[k],
                [variables[i] for i in mine],
                [decayed[i] for i in mine],
                [calls[i] for i in mine],
                optimizers.num_calls[k] if optimizers.num_calls else 1,
            )
            self.counts[k] = len(self.state) + one.iterations
            for i, average in zip(mine, one.averages, strict=False):
                self.averages[i] = len(self.state) + average
            self._members.append((mine, one))
            self.variables += one.variables
            self.state += one.state
            self.state_names += [
                (None, f"{k}/{name}") if i is None else (mine[i], name)
                for i, name in one.state_names
            ]
            if one.rate is not None:
                one.rate.assign(optimizer_traits.settable_rate(optimizers.optimizers[k]))
                self.state.append(one.rate)
                self.state_names.append((None, f"{k}/learning_rate"))

        self.iterations = next(iter(self.counts.values()), 0)

    def apply(
        self,
        values: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        scale: tf.Tensor | None = None,
        frozen: Frozen | None = None,
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Computes one update; see `StatelessOptimizer.apply`. `learning_rate` is ignored."""
        del learning_rate
        after, state_after, begin = list(values), list(state), 0
        for mine, one in self._members:
            end = begin + len(one.state)
            rate = state[end] if one.rate is not None else tf.constant(0.0)
            own = None
            if frozen is not None:
                own = Frozen([frozen.variables[i] for i in mine], frozen.after)
            new, state_after[begin:end] = one.apply(
                [values[i] for i in mine],
                state[begin:end],
                [gradients[i] for i in mine],
                rate,
                scale,
                own,
            )
            for i, value in zip(mine, new, strict=True):
                after[i] = value
            begin = end + (one.rate is not None)
        return after, state_after
