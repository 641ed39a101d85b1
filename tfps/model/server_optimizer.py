"""A Keras optimizer as a pure function of tensors, run by a parameter server.

On the TensorFlow backend, Keras optimizers write into `tf.Variable`s and go
through `tf.distribute`, which makes one `apply` many unlocked writes bound to
the variables it was built with. The general algorithms of Keras underneath are
free of both, so a subclass that restores them turns any optimizer into
`(values, state, gradients) -> (values, state)`: it can be compiled, applied
under a lock, and pointed at other variables without tracing again.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from tfps import _keras
from tfps._keras import BaseOptimizer
from tfps.model.frozen_adam import Freezable, can_freeze
from tfps.model.optimizer_traits import inner, static_loss_scale


def slots(optimizer: keras.optimizers.Optimizer) -> Callable[[tuple[int, ...]], float]:
    """How many values the optimizer keeps for each one of a variable.

    Returns:
      A function of the variable's shape. For optimizers that are not elementwise
      it is an estimate, from a variable of the same rank.
    """
    known: dict[tuple, float] = {}

    def count(shape):
        small = tuple(min(n, 8) for n in shape)
        if small not in known:
            variable = keras.Variable(tf.zeros(small), name="probe")
            probe = ServerOptimizer(optimizer, [variable], [False])
            elements = sum(math.prod(v.shape) for v in probe.state if len(v.shape))
            known[small] = elements / max(1, math.prod(small))
        return known[small]

    return count


def prepare(optimizer: keras.optimizers.Optimizer, gradients: list, scale: tf.Tensor):
    """Unscales and clips gradients on the worker, which sees those of the whole model.

    Args:
      optimizer: the one that the model was compiled with.
      gradients: tensors, or None where there is none.
      scale: float32 scalar by which the loss was multiplied.

    Returns:
      (gradients, finite): finite is a bool scalar, always true unless the
      optimizer scales the loss dynamically.
    """
    finite = tf.constant(True)
    dynamic = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if dynamic or static_loss_scale(optimizer) != 1.0:
        gradients = [None if g is None else g / tf.cast(scale, g.dtype) for g in gradients]
    if dynamic:
        checks = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None]
        finite = tf.reduce_all(tf.stack(checks))
    return _keras.clip_gradients(inner(optimizer), gradients), finite


class _Stateless(keras.optimizers.Optimizer):
    """Restores Keras's general algorithms over those of its TensorFlow backend.

    Mixed in behind an optimizer's class, it comes before the backend's class in
    the method resolution order, but after whatever the optimizer overrides itself.
    """

    add_variable_from_reference = BaseOptimizer.add_variable_from_reference
    stateless_apply = BaseOptimizer.stateless_apply
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
        # As in Keras, but with selections in place of conditional writes, which
        # have no meaning in a pure function.
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
        self._backend_update_step([t / n for t in totals], variables, self.learning_rate)
        for v, old in zip(touched, before, strict=True):
            v.assign(ops.where(update, v.value, old))
        for s, total in zip(sums, totals, strict=True):
            s.assign(ops.where(update, ops.zeros_like(total), total))


class Frozen(NamedTuple):
    """Whose second moments an update leaves as they are; see `Freezable`.

    Attributes:
      variables: per variable, whether its own stay.
      after: number of pushes that were applied before they were left.
    """

    variables: list[bool]
    after: int


class ServerOptimizer:
    """The optimizer of one parameter server, built on that server's buckets.

    Attributes:
      state: the Keras variables of the optimizer (iterations and slots), in the
        order in which `apply` takes and returns their values. They live on the
        device on which the constructor ran.
      state_names: per state variable, (index of the variable that it belongs to, or None for
        what belongs to none of them; name, such as "momentums").
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, variables: list, decayed: list[bool]):
        """Clones the optimizer and builds its state.

        Gradients arrive unscaled and clipped: both need the gradients of the
        whole model, which only the worker sees.

        Args:
          optimizer: the one that the model was compiled with. Its settings count,
            not its state: slots and iterations start afresh, together.
          variables: `keras.Variable`s, one a bucket.
          decayed: per variable, whether weight decay applies to it.
        """
        self._clone = _stateless_clone(inner(optimizer))
        self._clone.decayed = {id(v): d for v, d in zip(variables, decayed, strict=True)}
        self._clone.build(variables)
        self._built_for = variables
        rate = _keras.learning_rate_of(self._clone)
        # A settable rate is an argument of every step, so that a callback's
        # change is in force at once; a schedule is computed from `iterations` here.
        self._rate = rate if isinstance(rate, keras.Variable) else None
        named = zip(self._clone.variables, _keras.slot_names(self._clone), strict=True)
        mine = [(v, name) for v, name in named if v is not self._rate]
        self.state = [v for v, _ in mine]
        self.state_names = [name for _, name in mine]

    @property
    def variables(self) -> list[keras.Variable]:
        """All that was made on the device: the state and the unused learning rate."""
        return self._clone.variables

    @property
    def handles(self) -> list[tf.Tensor]:
        """The resource handles of the state."""
        return [v.value.handle for v in self.state]

    @property
    def iterations(self) -> keras.Variable:
        """int32 scalar: updates applied on this server."""
        return self._clone._iterations

    @property
    def averages(self) -> list[keras.Variable] | None:
        """The moving averages of the variables, where the optimizer keeps them."""
        return self._clone._model_variables_moving_average if self._clone.use_ema else None

    def apply(self, values, state, gradients, learning_rate, scale=None, frozen=None):
        """One update, as a pure function.

        Args:
          values: tensors, the buckets.
          state: tensors, in the order of `self.state`.
          gradients: tensors of the shapes of `values`.
          learning_rate: float32 scalar; ignored where the optimizer follows a
            schedule.
          scale: float32 scalar by which either rate is multiplied, or None.
          frozen: `Frozen`: whose second moments stay as they are; None if all change. Without
            effect for optimizers other than Adam and AdamW.

        Returns:
          (new values, new state).
        """
        if isinstance(self._clone, Freezable):
            stay, after = frozen or ([], 0)
            chosen = zip(self._built_for, stay, strict=frozen is not None)
            self._clone.frozen = frozenset(id(v) for v, f in chosen if f)
            self._clone.frozen_at = max(1, after // (self._clone.gradient_accumulation_steps or 1))
        given = {id(v): t for v, t in zip(self.state, state, strict=True)}
        if self._rate is not None:
            given[id(self._rate)] = learning_rate if scale is None else learning_rate * scale
        ordered = [given[id(v)] for v in self._clone.variables]
        with _keras.rate_times(self._clone, None if self._rate is not None else scale):
            values, updated = self._clone.stateless_apply(ordered, gradients, values)
        updated = {id(v): t for v, t in zip(self._clone.variables, updated, strict=True)}
        return values, [updated[id(v)] for v in self.state]


class RowOptimizer(ServerOptimizer):
    """The optimizer of one table, which updates any number of rows as if there were no others.

    `apply` takes and returns those rows of the table and of the slots.

    Attributes:
      state: `tf.Variable`s on the device on which the constructor ran.
      by_row: per state variable, whether it has a row for each of the table.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, shape, dtype: str, decayed: bool):
        """Clones the optimizer and builds its state.

        Args:
          optimizer: elementwise; see `ServerOptimizer`.
          shape, dtype: of the table.
          decayed: whether weight decay applies to it.
        """
        # Built on one row: an elementwise optimizer starts all of them alike.
        row = keras.Variable(tf.zeros((1, *shape[1:]), dtype), name="row")
        super().__init__(optimizer, [row], [decayed])
        self._built = self.state
        self.by_row = [v.shape == row.shape for v in self._built]
        self.state = []
        for v, by_row in zip(self._built, self.by_row, strict=True):
            value = tf.broadcast_to(v.value, shape) if by_row else v.value
            self.state.append(tf.Variable(value, trainable=False, name=v.name))
        for v, by_row in zip([row, *self._built], [True, *self.by_row], strict=True):
            if by_row:
                _keras.forget_rows(v)

    @property
    def handles(self):
        return [v.handle for v in self.state]

    @property
    def iterations(self) -> tf.Variable:
        """int scalar: updates applied on this server."""
        built = [v is self._clone._iterations for v in self._built]
        return self.state[built.index(True)]

    @property
    def averages(self):
        if not self._clone.use_ema:
            return None
        average = self._clone._model_variables_moving_average[0]
        return [self.state[[v is average for v in self._built].index(True)]]

    def apply(self, values, state, gradients, learning_rate, scale=None, frozen=None):
        """See `ServerOptimizer.apply`; tensors [rows, width] of as many rows."""
        stored, self.state = self.state, self._built
        try:
            return super().apply(values, state, gradients, learning_rate, scale, frozen)
        finally:
            self.state = stored


def _stateless_clone(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    cls = type(optimizer)
    bases = (Freezable, cls, _Stateless) if can_freeze(optimizer) else (cls, _Stateless)
    clone_class = type(f"Stateless{cls.__name__}", bases, {})
    config = optimizer.get_config()
    for name in ("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor"):
        if name in config:
            config[name] = None
    rate = _keras.learning_rate_of(optimizer)
    schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    # A schedule goes in as the object, so that a custom one needs no registration.
    config["learning_rate"] = rate if schedule else 0.0
    return clone_class.from_config(config)
