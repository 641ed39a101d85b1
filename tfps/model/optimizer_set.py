"""Several optimizers in one model, each for variables of its own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import keras

from tfps import _keras_optimizers, _keras_variables, errors

# The calls of `apply` that concern a variable whose optimizer is applied once in a step.
ONCE = (0,)


@dataclasses.dataclass(frozen=True, eq=False)
class OptimizerSet:
    """Keras optimizers, and which variable each of them updates.

    It may stand wherever an optimizer is asked for. Gradients of one optimizer's variables are
    clipped together. Learning rates that can be set are part of the state on the servers.

    Attributes:
      optimizers: of Keras; none of them is a `LossScaleOptimizer` or `MultiOptimizer`.
      owners: per trainable variable of the model, the index of its optimizer; None if no optimizer
        updates the variable.
      whole: the optimizer that the model was compiled with, which has the others inside, with the
        exception of those that belong to a layer's rows; None if there is no such optimizer.
      calls: per trainable variable, which calls of its optimizer's `apply` in a step concern it,
        ascending; empty if every step applies each optimizer once.
      num_calls: per optimizer, how often a step applies it; likewise empty.
    """

    optimizers: tuple[keras.optimizers.Optimizer, ...]
    owners: tuple[int | None, ...]
    whole: keras.optimizers.Optimizer | None = None
    calls: tuple[tuple[int, ...], ...] = ()
    num_calls: tuple[int, ...] = ()

    def of(self, i: int) -> keras.optimizers.Optimizer | None:
        """The optimizer of a trainable variable, or None if it has none."""
        owner = self.owners[i]
        return None if owner is None else self.optimizers[owner]

    def owned(self, k: int) -> list[int]:
        """The indices of the trainable variables that optimizer `k` updates."""
        return [i for i, owner in enumerate(self.owners) if owner == k]

    def calls_of(self, i: int) -> tuple[int, ...]:
        """Which calls of `apply` in a step concern a trainable variable."""
        return self.calls[i] if self.calls else ONCE


AnyOptimizer: TypeAlias = keras.optimizers.Optimizer | OptimizerSet


def in_force(
    optimizers: Sequence[keras.optimizers.Optimizer],
    owners: Sequence[int | None],
    trainable: Sequence[keras.Variable],
    calls: Sequence[tuple[int, ...]] = (),
    num_calls: Sequence[int] = (),
) -> AnyOptimizer:
    """What updates a model.

    Args:
      optimizers: that a training step of the model applies. A single `MultiOptimizer` is built,
        without memory for slots, because only then it is known which variables its optimizers have.
      owners: see `OptimizerSet`; without effect if there is one optimizer.
      trainable: the model's trainable variables.
      calls, num_calls: see `OptimizerSet`.

    Returns:
      The optimizer itself if there is one, which a step applies once, or the set.

    Raises:
      ConfigError: several optimizers, one of which is made of others.
      ValueError: Keras's own, if the optimizer was built for other variables.
    """
    if len(optimizers) > 1 or calls:
        for one in optimizers:
            if len(_keras_optimizers.nested(one)) > 1:
                raise errors.ConfigError(
                    f"{one.name} is a {type(one).__name__}, which goes with no other optimizer in "
                    "the same model; use plain optimizers, and a loss_scale_factor or bfloat16"
                )
        repeated = tuple(calls), tuple(num_calls)
        return OptimizerSet(tuple(optimizers), tuple(owners), None, *repeated)
    (optimizer,) = optimizers
    several = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(several, keras.optimizers.MultiOptimizer):
        return optimizer
    if not optimizer.built:
        _keras_variables.build_without_memory(optimizer, list(trainable))
    _keras_optimizers.require_known(several, trainable)
    return OptimizerSet(
        tuple(several.optimizers), _keras_optimizers.owners(several, trainable), optimizer
    )


def with_own(
    optimizer: AnyOptimizer, own: Mapping[int, keras.optimizers.Optimizer], num_trainable: int
) -> AnyOptimizer:
    """What updates a model some of whose variables bring an optimizer of their own.

    Args:
      optimizer: of `in_force`.
      own: trainable variable -> its optimizer, in place of the one that `optimizer` has for it.
      num_trainable: number of trainable variables.

    Returns:
      `optimizer` itself if no variable brings one. Otherwise a set, in which the optimizers of
      `own` come last.

    Raises:
      ConfigError: an optimizer is made of others, or a step applies several optimizers already.
    """
    if not own:
        return optimizer
    for one in own.values():
        if len(_keras_optimizers.nested(one)) > 1 or one.loss_scale_factor:
            raise errors.ConfigError(
                f"optimizer={type(one).__name__} of a layer must be a plain optimizer, because the "
                "loss is scaled by what the model was compiled with; give it no other optimizer "
                "and no loss_scale_factor"
            )
    base = optimizer
    if not isinstance(base, OptimizerSet):
        inner = getattr(base, "inner_optimizer", base)
        base = OptimizerSet((inner,), (0,) * num_trainable, base)
    if base.whole is None:
        raise errors.ConfigError(
            f"{len(base.optimizers)} optimizers are applied by the model's train_step, which says "
            "whom each of them updates; leave out the layer's optimizer="
        )
    every = list({id(one): one for one in (*base.optimizers, *own.values())}.values())
    place = {id(one): k for k, one in enumerate(every)}
    owners = [place[id(own[i])] if i in own else owner for i, owner in enumerate(base.owners)]
    return dataclasses.replace(base, optimizers=tuple(every), owners=tuple(owners))
