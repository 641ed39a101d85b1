"""What is inside of a Keras optimizer: private names of Keras, as of Keras 3.15.

Two subclasses of Keras's optimizers override private methods elsewhere:
`model/stateless_optimizer.py` and `model/frozen_adam.py`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer

__all__ = [
    "BaseOptimizer",
    "adam_moments",
    "applies_its_own_way",
    "clip_gradients",
    "config_without_rate",
    "decays",
    "finalize",
    "learning_rate_of",
    "moving_averages",
    "nested",
    "optimizers_of",
    "overrides_apply",
    "owners",
    "require_known",
    "settings_of",
    "slot_names",
    "slots_of",
    "unbuild",
    "update_count",
    "variant",
    "with_rate_times",
]


def applies_its_own_way(optimizer: keras.optimizers.Optimizer | None) -> bool:
    """Whether the optimizer's class overrides `apply_gradients`, which only a step calls."""
    own = getattr(type(optimizer), "apply_gradients", BaseOptimizer.apply_gradients)
    return own is not BaseOptimizer.apply_gradients


def overrides_apply(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimizer's class, of the user's own, overrides `apply`."""
    return not type(optimizer).apply.__module__.startswith("keras.")


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """All optimizers that are attributes of the model, alone or in lists, tuples and dicts."""
    candidates: list[Any] = []
    for value in vars(model).values():
        if isinstance(value, dict):
            candidates.extend(value.values())
        elif isinstance(value, list | tuple):
            candidates.extend(value)  # TensorFlow's tuples of layers cannot be added to a list.
        else:
            candidates.append(value)
    return list({id(c): c for c in candidates if isinstance(c, BaseOptimizer)}.values())


def clip_gradients(
    optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor | None]
) -> list[tf.Tensor | None]:
    """Clips by value, by norm or by global norm, as the optimizer is configured."""
    return optimizer._clip_gradients(gradients)


def adam_moments(
    optimizer: keras.optimizers.Adam, variable: keras.Variable
) -> tuple[keras.Variable, keras.Variable]:
    """The (first, second) moments of a variable that an Adam was built with."""
    i = optimizer._get_variable_index(variable)
    return optimizer._momentums[i], optimizer._velocities[i]


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Per variable of the optimizer, its moving average; empty without `use_ema`."""
    return list(optimizer._model_variables_moving_average) if optimizer.use_ema else []


def finalize(model: keras.Model) -> None:
    """Lets an optimizer that ends training in a way of its own do so, as Keras does after `fit`.

    Moving averages (`use_ema`) are not its own way: the servers install them.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    own = getattr(type(optimizer), "finalize_variable_values", None)
    if own not in (None, BaseOptimizer.finalize_variable_values):
        optimizer.finalize_variable_values(model.trainable_weights)


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether the optimizer's weight decay applies to the variable."""
    return bool(optimizer.weight_decay) and optimizer._use_weight_decay(variable.value)


def update_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The variable that counts calls of `apply`, an int scalar.

    The optimizer's `iterations` is less where it accumulates the gradients of several calls.
    """
    return optimizer._iterations


def settings_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables of an optimizer that exist before it is built: its count and its rate."""
    one = getattr(optimizer, "inner_optimizer", optimizer)
    own = (one._iterations, one._learning_rate)
    return [v for v in own if isinstance(v, keras.Variable)]


def slot_names(optimizer: keras.optimizers.Optimizer) -> list[tuple[int | None, str]]:
    """Names each of a built optimizer's variables, and says to what the variable belongs.

    Keras's own names do not tell the two moments of Adafactor apart. So a name is that of the
    attribute in which the optimizer keeps the variable, alone or in a list with an entry for each
    model variable.

    Returns:
      In the order of `variables`: (index of the model variable, or None for a variable that
      belongs to none of them; name, such as "momentums").
    """
    built_for = len(optimizer._trainable_variables)
    found: dict[int, tuple[int | None, str]] = {}
    for attribute, value in vars(optimizer).items():
        name = attribute.lstrip("_")
        if isinstance(value, keras.Variable):
            found[id(value)] = None, name
        elif isinstance(value, list) and len(value) == built_for and name != "variables":
            found.update((id(v), (i, name)) for i, v in enumerate(value) if v is not None)
    return [found.get(id(v), (None, f"variable_{k}")) for k, v in enumerate(optimizer.variables)]


def slots_of(
    optimizer: keras.optimizers.Optimizer, alone: bool = False
) -> list[tuple[keras.Variable | None, str, keras.Variable]]:
    """The state of an optimizer, without the learning rate.

    Args:
      optimizer: built or not; not a `LossScaleOptimizer`.
      alone: whether the state of optimizers inside of it is left out.

    Returns:
      (model variable to which the state belongs, or None if it belongs to no single one; name of
      the state, see `slot_names`; the state).
    """
    built_for = list(optimizer._trainable_variables)
    own = {id(v) for v in optimizer._variables}
    named = zip(slot_names(optimizer), optimizer.variables, strict=True)
    return [
        (None if i is None else built_for[i], name, state)
        for (i, name), state in named
        if state is not optimizer._learning_rate and (not alone or id(state) in own)
    ]


def owners(
    optimizer: keras.optimizers.MultiOptimizer, variables: Sequence[keras.Variable]
) -> tuple[int, ...]:
    """Per variable, which of a built optimizer's `optimizers` updates it."""
    return tuple(optimizer._var_to_optimizer_idx[optimizer._var_key(v)] for v in variables)


def nested(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """An optimizer, and the optimizers inside of it (loss scaling, several optimizers)."""
    inside = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])]
    return [optimizer, *(n for one in inside if one is not None for n in nested(one))]


def require_known(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> None:
    """Raises Keras's own `ValueError` unless a built optimizer was built for all variables."""
    optimizer._check_variables_are_known(variables)


def unbuild(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes a built optimizer start afresh when it is built again: without slots, at step 0."""
    for one in nested(optimizer):
        for variable in one._variables[:]:
            if variable is not one._iterations and variable is not one._learning_rate:
                one._tracker.untrack(variable)
        one._iterations.assign(0)
        one.built = False


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """The optimizer's learning rate: a variable, a schedule or a callable."""
    return optimizer._learning_rate


def config_without_rate(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """The optimizer's `get_config`, in which the learning rate means nothing.

    A schedule without a `get_config` of its own, which Keras trains with but cannot save, is no
    error here.
    """
    return variant(optimizer, _learning_rate=0.0).get_config()


def variant(optimizer: keras.optimizers.Optimizer, **attributes: Any) -> keras.optimizers.Optimizer:
    """Makes an optimizer with the same variables and other attributes; leaves `optimizer` alone.

    Args:
      optimizer: A built optimizer.
      **attributes: what the variant has in place of the optimizer's own attributes.
    """
    # `copy.copy` would write the optimizer into a file and read it back.
    other = object.__new__(type(optimizer))
    vars(other).update(vars(optimizer), **attributes)
    return other


def with_rate_times(
    optimizer: keras.optimizers.Optimizer, scale: tf.Tensor
) -> keras.optimizers.Optimizer:
    """Makes a `variant` of an optimizer that multiplies the rate of its schedule by `scale`."""
    return variant(optimizer, _learning_rate=_Scaled(optimizer._learning_rate, scale))


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, schedule, scale):
        self._schedule, self._scale = schedule, scale

    def __call__(self, step):
        return self._schedule(step) * self._scale

    def get_config(self):
        return {}


def is_saved_in(store: Any) -> bool:
    """Whether a file of Keras has the state of a model's optimizer.

    Args:
      store: what a layer's `load_own_variables` is given.
    """
    find = getattr(store, "has_path", None)
    return find is not None and find("optimizer")
