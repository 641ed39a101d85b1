"""What the settings of a Keras optimizer mean for training on servers."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_optimizers, errors
from tfps.model.optimizer_set import AnyOptimizer, OptimizerSet

# The update of an element reads no other element, so buckets and shards change no result.
_ELEMENTWISE = frozenset(
    {
        keras.optimizers.SGD,
        keras.optimizers.RMSprop,
        keras.optimizers.Adam,
        keras.optimizers.AdamW,
        keras.optimizers.Adagrad,
        keras.optimizers.Adadelta,
        keras.optimizers.Adamax,
        keras.optimizers.Nadam,
        keras.optimizers.Ftrl,
        keras.optimizers.Lion,
    }
)


def inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that updates the weights, without a `LossScaleOptimizer` around it."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def each(optimizer: AnyOptimizer) -> Sequence[keras.optimizers.Optimizer]:
    """The optimizers that update weights: one, or those of a set."""
    if isinstance(optimizer, OptimizerSet):
        return optimizer.optimizers
    return [inner(optimizer)]


def owned(
    optimizer: AnyOptimizer, num_trainable: int
) -> list[tuple[keras.optimizers.Optimizer, list[int]]]:
    """Each optimizer that updates weights, with the indices of its trainable variables."""
    if isinstance(optimizer, OptimizerSet):
        return [(one, optimizer.owned(k)) for k, one in enumerate(optimizer.optimizers)]
    return [(inner(optimizer), list(range(num_trainable)))]


def owner_of(optimizer: AnyOptimizer, i: int) -> keras.optimizers.Optimizer | None:
    """The optimizer that updates a trainable variable; None if none does."""
    return optimizer.of(i) if isinstance(optimizer, OptimizerSet) else inner(optimizer)


def counted(optimizer: AnyOptimizer, count: keras.Variable) -> int | None:
    """The index in `each` of the optimizer whose `iterations` a variable is.

    It is the first one that has variables for what the others are inside of, since they count
    together, and None if the variable counts something else.
    """
    for k, one in enumerate(each(optimizer)):
        if _keras_optimizers.update_count(one) is count:
            return k
    around = whole(optimizer)
    if around is None or _keras_optimizers.update_count(inner(around)) is not count:
        return None
    owners = optimizer.owners if isinstance(optimizer, OptimizerSet) else []
    return min((k for k in owners if k is not None), default=0)


def whole(optimizer: AnyOptimizer) -> keras.optimizers.Optimizer | None:
    """The optimizer that the model was compiled with; None for a set that is not inside of one."""
    return optimizer.whole if isinstance(optimizer, OptimizerSet) else optimizer


def is_dynamically_scaled(optimizer: AnyOptimizer) -> bool:
    """Whether the optimizer scales the loss by a changing factor of its own (mixed float16)."""
    return isinstance(whole(optimizer), keras.optimizers.LossScaleOptimizer)


def is_elementwise(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether updating a slice of a variable equals slicing the updated variable."""
    one = inner(optimizer)
    norms = clips_on_servers(optimizer) and bool(one.clipnorm or one.global_clipnorm)
    return type(one) in _ELEMENTWISE and not norms


def clips_on_servers(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether gradients are clipped where they are applied, and not on the worker.

    Keras clips the mean of accumulated gradients, and they accumulate on the servers.
    """
    return bool(inner(optimizer).gradient_accumulation_steps)


def require_supported(optimizer: keras.optimizers.Optimizer, num_ps: int) -> None:
    """Raises `ConfigError` for settings that would mean something else on several servers.

    Of an own `apply`, it is not known whether it would, so there is a warning.

    Args:
      optimizer: the one that the model was compiled with.
      num_ps: number of parameter servers.
    """
    several = inner(optimizer)
    for one in getattr(several, "optimizers", [several]):
        _require_supported(one, num_ps)


def _require_supported(one: keras.optimizers.Optimizer, num_ps: int) -> None:
    if one.gradient_accumulation_steps and one.global_clipnorm and num_ps > 1:
        raise errors.ConfigError(
            f"the optimizer has gradient_accumulation_steps={one.gradient_accumulation_steps} and "
            f"global_clipnorm={one.global_clipnorm}, but each of the {num_ps} ps accumulates its "
            "own variables and does not know the norm of all; use clipnorm, or one ps"
        )
    if num_ps > 1 and _keras_optimizers.overrides_apply(one):
        warnings.warn(
            f"{type(one).__name__} overrides apply, which each of the {num_ps} ps calls with the "
            "gradients of its own variables; if it looks at all of them together, for a norm, say, "
            "use one ps, or override apply_gradients in its place, which workers call with all",
            stacklevel=2,
        )


def require_lazy(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises `ConfigError` if the optimizer cannot update some rows of a table alone."""
    one = inner(optimizer)
    if not is_elementwise(optimizer):
        raise errors.ConfigError(
            f'sparse_updates="lazy" updates single rows, but {type(one).__name__} needs whole '
            'variables; use "exact", or an elementwise optimizer such as Adam'
        )
    if one.gradient_accumulation_steps:
        raise errors.ConfigError(
            f"gradient_accumulation_steps={one.gradient_accumulation_steps} updates all rows at "
            'once, which sparse_updates="lazy" does not; use "exact" or no accumulation'
        )
    if one.use_ema:
        raise errors.ConfigError(
            "use_ema=True averages all rows at every update, which neither "
            'sparse_updates="lazy" nor a table that grows does; compile with use_ema=False'
        )


def require_outer(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises `ConfigError` if the optimizer cannot take pseudo-gradients (`LocalSteps`)."""
    settings = ["clipnorm", "clipvalue", "global_clipnorm", "weight_decay", "use_ema"]
    settings += ["gradient_accumulation_steps", "loss_scale_factor"]
    name = type(optimizer).__name__
    for setting in settings:
        if value := getattr(inner(optimizer), setting):
            raise errors.ConfigError(
                f"outer={name} has {setting}={value}, which belongs to the workers' optimizer; "
                "give it to model.compile"
            )
    if not is_elementwise(optimizer) or is_dynamically_scaled(optimizer):
        raise errors.ConfigError(
            f"outer={name} must be an elementwise optimizer, such as SGD or Adam"
        )


def rate_of(optimizer: AnyOptimizer) -> Any:
    """What gives the learning rate: a variable, a schedule or a callable; None for a set."""
    if isinstance(optimizer, OptimizerSet):
        return None
    return _keras_optimizers.learning_rate_of(inner(optimizer))


def settable_rate(optimizer: AnyOptimizer) -> float:
    """The learning rate to send with a step; see `rate_now`."""
    return rate_now(rate_of(optimizer))


def rate_now(rate: Any) -> float:
    """The learning rate to send with a step.

    It is 0.0 if the servers follow a schedule, or have the rates of a set.

    Args:
      rate: of `rate_of`, when the servers' optimizer was made.
    """
    if rate is None:
        return 0.0
    if isinstance(rate, keras.Variable):
        # The chief reads it for each step; Keras's own way takes five times as long.
        handle = rate.value.handle
        return float(tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.as_dtype(rate.dtype)))
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return 0.0
    return float(rate())


def assigned_rate(optimizer: AnyOptimizer) -> float | None:
    """The learning rate that can be assigned; None if a schedule or a callable gives the rate.

    A set has none, because its rates are part of the servers' state.
    """
    if isinstance(optimizer, OptimizerSet):
        return None
    rate = _keras_optimizers.learning_rate_of(inner(optimizer))
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else None


def static_loss_scale(optimizer: AnyOptimizer) -> float:
    """The constant factor by which the optimizer scales the loss, or 1.0 without a factor.

    The optimizers of a `MultiOptimizer` have it in common; see `own_loss_scales` for other sets.
    """
    return each(optimizer)[0].loss_scale_factor or 1.0


def own_loss_scales(optimizer: AnyOptimizer) -> list[float]:
    """Per trainable variable, the factor by which its own optimizer scales the loss.

    It is empty unless an own `train_step` applies several optimizers. Only then each of them has
    scaled the loss of its own variables.
    """
    if not isinstance(optimizer, OptimizerSet) or optimizer.whole is not None:
        return []
    owners = [optimizer.of(i) for i in range(len(optimizer.owners))]
    return [1.0 if one is None else one.loss_scale_factor or 1.0 for one in owners]
