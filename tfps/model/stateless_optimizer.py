"""A Keras optimizer as a pure function of tensors.

On the TensorFlow backend, Keras optimizers write into `tf.Variable`s and go through
`tf.distribute`, so one `apply` is many unlocked writes bound to the variables that the optimizer
was built with. Keras's general algorithms below the backend do neither. A subclass that restores
them turns any optimizer into a function `(values, state, gradients) -> (values, state)`, which can
be compiled, applied under a lock, and pointed at other variables without tracing again.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfps import _keras_optimizers
from tfps._keras_optimizers import BaseOptimizer
from tfps.model.frozen_adam import Freezable, Frozen, can_freeze
from tfps.model.optimizer_clone import clone
from tfps.model.optimizer_traits import inner


class StatelessOptimizer:
    """A clone of an optimizer whose update is a pure function.

    Attributes:
      variables: all Keras variables of the clone: the state and the unused learning rate.
      state: the variables of the state (iterations and slots), in the order in which `apply` takes
        and returns their values.
      state_names: per variable of the state, (index of the variable that it belongs to, or None if
        it belongs to none; name, such as "momentums").
      iterations: index in `state` of the number of calls of `apply`, an int32 scalar.
      rate: the variable of a learning rate that can be set, which `apply` is given; None if the
        optimizer follows a schedule.
      averages: per variable, the index in `state` of its moving average; empty if the optimizer
        has none.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        variables: Sequence[keras.Variable],
        decayed: Sequence[bool],
        calls: Sequence[tuple[int, ...]] = (),
        num_calls: int = 1,
    ):
        """Clones the optimizer and builds its state on the current device.

        Gradients must arrive unscaled and clipped, since both need the gradients of the whole
        model: `gradients.unscale_and_clip`. An optimizer that accumulates clips by itself.

        Args:
          optimizer: the optimizer that the model was compiled with. The clone has its settings,
            but not its state: slots and iterations start afresh, together.
          variables: variables of the shapes and dtypes to update.
          decayed: per variable, whether weight decay applies.
          calls: per variable, which calls of Keras's `apply` an update makes for it; by default
            all.
          num_calls: how many calls of Keras's `apply` an update is.

        Raises:
          ConfigError: the class cannot be made from what its `get_config` returns, and has state
            that its `__init__` makes.
        """
        self._built_for = list(variables)
        every = [tuple(range(num_calls))] * len(self._built_for)
        self._calls, self._num_calls = list(calls) or every, num_calls
        self._can_freeze = can_freeze(inner(optimizer))
        self._clone = _stateless_clone(inner(optimizer), self._built_for)
        self._clone.decayed = {id(v): d for v, d in zip(variables, decayed, strict=True)}
        rate = _keras_optimizers.learning_rate_of(self._clone)
        # A learning rate that can be set is an argument of every update, so that a callback's
        # change is in force at once. A schedule is computed from `iterations` where the update is.
        self.rate = rate if isinstance(rate, keras.Variable) else None
        self.variables = list(self._clone.variables)
        named = zip(self.variables, _keras_optimizers.slot_names(self._clone), strict=True)
        mine = [(v, name) for v, name in named if v is not self.rate]
        self.state = [v for v, _ in mine]
        self.state_names = [name for _, name in mine]
        index = {id(v): i for i, v in enumerate(self.state)}
        self.iterations = index[id(_keras_optimizers.update_count(self._clone))]
        self.averages = [index[id(v)] for v in _keras_optimizers.moving_averages(self._clone)]

    def apply(
        self,
        values: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        scale: tf.Tensor | None = None,
        frozen: Frozen | None = None,
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Computes one update.

        Args:
          values: the present values of the variables.
          state: the present values of `self.state`.
          gradients: tensors of the shapes of `values`.
          learning_rate: float32 scalar, ignored if the optimizer follows a schedule.
          scale: float32 scalar that multiplies the learning rate or the schedule's rate; None
            means 1.
          frozen: the second moments that this update leaves alone, or None. Only Adam and AdamW
            have second moments to freeze; other optimizers ignore it.

        Returns:
          (new values, new state).
        """
        optimizer = self._clone
        given = {id(v): t for v, t in zip(self.state, state, strict=True)}
        if self.rate is not None:
            given[id(self.rate)] = learning_rate if scale is None else learning_rate * scale
        elif scale is not None:
            optimizer = _keras_optimizers.with_rate_times(optimizer, scale)
        if frozen is not None and self._can_freeze:
            optimizer = self._with_frozen(optimizer, frozen)
        pairs = [*zip(self._built_for, values, strict=True)]
        pairs += [(v, given[id(v)]) for v in self.variables]
        with keras.StatelessScope(pairs) as scope:
            for call in range(self._num_calls):
                self._call(optimizer, call, gradients)
        after = [
            [scope.get_current_value(v) for v in some] for some in (self._built_for, self.state)
        ]
        return after[0], after[1]

    def _call(
        self, optimizer: keras.optimizers.Optimizer, call: int, gradients: Sequence[tf.Tensor]
    ) -> None:
        """One of the calls of Keras's `apply` that an update is, in a stateless scope."""
        mine = [i for i, calls in enumerate(self._calls) if call in calls]
        if mine:
            optimizer.apply([gradients[i] for i in mine], [self._built_for[i] for i in mine])
        else:
            # It concerns variables of other servers only, and is counted everywhere.
            count = _keras_optimizers.update_count(optimizer)
            count.assign(count + 1)

    def _with_frozen(self, optimizer, frozen: Frozen) -> keras.optimizers.Optimizer:
        chosen = zip(self._built_for, frozen.variables, strict=True)
        return _keras_optimizers.variant(
            optimizer,
            frozen=frozenset(id(v) for v, is_frozen in chosen if is_frozen),
            frozen_at=max(1, frozen.after // (optimizer.gradient_accumulation_steps or 1)),
        )


class _Stateless(keras.optimizers.Optimizer):
    """A mixin that restores Keras's general algorithms over those of the TensorFlow backend.

    In the order of base classes it comes after the optimizer's own class and before the backend's
    class. So it does not hide what the optimizer itself overrides.
    """

    add_variable_from_reference = BaseOptimizer.add_variable_from_reference
    assign = BaseOptimizer.assign
    assign_add = BaseOptimizer.assign_add
    assign_sub = BaseOptimizer.assign_sub
    _var_key = BaseOptimizer._var_key
    _apply_weight_decay = BaseOptimizer._apply_weight_decay
    _backend_update_step = BaseOptimizer._backend_update_step
    _overwrite_model_variables_with_average_value = (
        BaseOptimizer._overwrite_model_variables_with_average_value
    )

    def _use_weight_decay(self, variable):
        return self.decayed[id(variable)]

    def _backend_apply_gradients(self, gradients, variables):
        # As in Keras, but with selections in place of conditional writes, which have no meaning in
        # a pure function.
        if self.gradient_accumulation_steps:
            self._accumulate(gradients, variables)
        else:
            self._apply_weight_decay(variables)
            self._backend_update_step(gradients, variables, self.learning_rate)
        if not self.use_ema:
            return
        self._update_model_variables_moving_average(self._trainable_variables)
        if self.ema_overwrite_frequency:
            overwrite = (self.iterations + 1) % self.ema_overwrite_frequency == 0
            averages = self._model_variables_moving_average
            for v, average in zip(self._trainable_variables, averages, strict=True):
                v.assign(ops.where(overwrite, average.value, v.value))

    def _accumulate(self, gradients, variables):
        n = self.gradient_accumulation_steps
        update = (self._iterations + 1) % n == 0
        sums = [self._accumulated_gradients[self._get_variable_index(v)] for v in variables]
        totals = [s + g for s, g in zip(sums, gradients, strict=True)]
        touched = [*variables, *self.variables]
        before = [v.value for v in touched]
        self._apply_weight_decay(variables)
        means = self._clip_gradients([t / n for t in totals])
        self._backend_update_step(means, variables, self.learning_rate)
        for v, old in zip(touched, before, strict=True):
            v.assign(ops.where(update, v.value, old))
        for s, total in zip(sums, totals, strict=True):
            s.assign(ops.where(update, ops.zeros_like(total), total))


def _stateless_clone(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> Any:
    cls = type(optimizer)
    bases = (Freezable, cls, _Stateless) if can_freeze(optimizer) else (cls, _Stateless)
    return clone(optimizer, type(f"Stateless{cls.__name__}", bases, {}), variables)
