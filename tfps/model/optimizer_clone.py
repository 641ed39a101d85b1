"""Making an optimizer for the servers that has the settings of the user's."""

import functools
import types
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras_optimizers, errors
from tfps._keras_optimizers import BaseOptimizer
from tfps.model.optimizer_traits import clips_on_servers

# The types of an attribute that is a setting of an optimizer, and no state.
_SCALARS = bool, int, float, complex, str, bytes, np.generic, type(None)
_FUNCTIONS = types.FunctionType, types.BuiltinFunctionType, functools.partial
_SETTINGS = (
    *_SCALARS,
    *_FUNCTIONS,
    *(np.ndarray, tf.Tensor, tuple, list, dict, set, frozenset),
    keras.optimizers.schedules.LearningRateSchedule,
)
_STATE = keras.Variable, tf.Variable, BaseOptimizer

# What the first `__init__` of all optimizers takes, besides the learning rate.
_ARGUMENTS = (
    *("weight_decay", "clipnorm", "clipvalue", "global_clipnorm"),
    *("use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("loss_scale_factor", "gradient_accumulation_steps", "name"),
)


def clone(
    optimizer: keras.optimizers.Optimizer, cls: type, variables: Sequence[keras.Variable]
) -> keras.optimizers.Optimizer:
    """Makes an optimizer of a class that has another one's settings, but not its state.

    The rate of the clone is the other one's schedule, or 0.0. What a worker does with gradients
    before it sends them, the clone does not do again.

    Args:
      optimizer: whose settings the clone has. Its class need not have a `get_config`, nor an
        `__init__` that takes what `get_config` returns: plain Keras needs them only to save.
      cls: a subclass of the optimizer's class.
      variables: for which the clone is built.

    Raises:
      ConfigError: the class cannot be made from what its `get_config` returns, and has state that
        its `__init__` makes.
    """
    rate = _keras_optimizers.learning_rate_of(optimizer)
    schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    config = _keras_optimizers.config_without_rate(optimizer)
    # `gradients.unscale_and_clip` has done this on the worker.
    done = ["loss_scale_factor"]
    if not clips_on_servers(optimizer):
        done += ["clipnorm", "clipvalue", "global_clipnorm"]
    for name in done:
        if name in config:
            config[name] = None
    # A schedule is passed as the object, so that a user's schedule needs neither registration nor
    # a `get_config`.
    config["learning_rate"] = rate if schedule else 0.0
    try:
        made, is_whole = cls.from_config(config), True  # type: ignore[attr-defined]
    except TypeError:
        made, is_whole = object.__new__(cls), False
        common = {name: getattr(optimizer, name) for name in _ARGUMENTS if name not in done}
        keras.optimizers.Optimizer.__init__(made, config["learning_rate"], **common)
    # Where nothing has made the attributes of other kinds, the two optimizers share them.
    kinds: Any = _SETTINGS if is_whole else object
    for name, value in vars(optimizer).items():
        if name not in _common_attributes() and isinstance(value, kinds) and not _has_state(value):
            copies = isinstance(value, list | dict | set | np.ndarray)
            setattr(made, name, value.copy() if copies else value)
    made.build(list(variables))
    missing = sorted(vars(optimizer).keys() - vars(made).keys())
    if missing and not is_whole:
        raise errors.ConfigError(
            f"{type(optimizer).__name__} cannot be made from its get_config for the servers, "
            f"and its __init__ makes state that they need as well ({', '.join(missing)}); make "
            "the state in build, or let get_config return every argument that __init__ requires"
        )
    return made


def _has_state(value: Any) -> bool:
    """Whether there are variables or optimizers in a value."""
    leaves = value if isinstance(value, set | frozenset) else keras.tree.flatten(value)
    return any(isinstance(leaf, _STATE) for leaf in leaves)


@functools.cache
def _common_attributes() -> frozenset[str]:
    """The names of the attributes that every optimizer has, which come by its first `__init__`."""
    return frozenset(vars(keras.optimizers.Optimizer(0.0)))
