"""What a consistency policy is: when workers may step, and what the servers do with a push."""

import abc
import dataclasses
import json

import keras

from tfps import _keras_optimizers, errors
from tfps.training.schedule import RoundSchedule, Schedule


@dataclasses.dataclass(frozen=True)
class ModelAverage:
    """A rule for `LocalSteps`: the workers' models are averaged.

    Attributes:
      decay: how much of the servers' model stays, at least 0 and below 1. With 0, the arithmetic
        mean of the workers' models takes its place. Otherwise the servers' model is an
        exponentially weighted average of the means.
    """

    decay: float = 0.0

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise errors.ConfigError(f"decay={self.decay!r} must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What workers push and what the servers do with a push: the servers' side of a policy.

    Policies with equal exchanges share what the servers remember for them, so a run may change
    between such policies without losing any of it.

    Attributes:
      in_rounds: whether pushes are added up and applied as one update, instead of one by one.
      staleness_scaling: whether the learning rate of a push is divided by its staleness.
      outer: none if workers push gradients for the compiled optimizer. Otherwise workers train on
        copies, and the servers apply their pseudo-gradients with this: a Keras optimizer, or a
        `ModelAverage`.
    """

    in_rounds: bool = False
    staleness_scaling: bool = False
    outer: keras.optimizers.Optimizer | ModelAverage | None = None

    @property
    def name(self) -> str:
        """A text that is equal for equal exchanges, in other processes, too."""
        outer = self.outer
        if isinstance(outer, keras.optimizers.Optimizer):
            # Keras gives each optimizer of a process another name, and the rate may be changed.
            config = _keras_optimizers.config_without_rate(outer)
            config |= {"name": type(outer).__name__, "learning_rate": None}
            outer = json.dumps(keras.saving.serialize_keras_object(config), sort_keys=True)
        return f"in_rounds={self.in_rounds},staleness_scaling={self.staleness_scaling},{outer}"

    def outer_optimizer(self, workers: int) -> keras.optimizers.Optimizer:
        """The optimizer that the servers apply pseudo-gradients with.

        Args:
          workers: that take part. Where pseudo-gradients are applied one by one, a model average
            takes a worker's share of each.
        """
        if not isinstance(self.outer, ModelAverage):
            return self.outer
        rate = 1 - self.outer.decay
        return keras.optimizers.SGD(rate if self.in_rounds else rate / workers)


class ConsistencyPolicy(abc.ABC):
    """Decides, on the chief, which worker may step when, and what the servers do with a push.

    `tfps.Trainer(consistency=...)` takes any object of a subclass. The trainer asks for a new
    `schedule` whenever training begins to follow the policy: in each epoch, and when a callback
    assigns the policy. All other members have to stay as they are meanwhile.

    Attributes:
      in_rounds: whether pushes are added up and applied as one update. The schedule is a
        `RoundSchedule` then, and a step is two calls to a worker: one computes, the other pushes.
      staleness_scaling: whether the learning rate of a push is divided by the number of updates
        that the push has missed, if there are any.
      local_steps: how many steps a worker takes on a copy of its own between two exchanges, if the
        `exchange` has an outer optimizer; otherwise 0, and workers push the gradients of each step.
      delay: how many of these steps a worker takes while the next parameters arrive.
    """

    in_rounds: bool = False
    staleness_scaling: bool = False
    local_steps: int = 0
    delay: int = 0

    @abc.abstractmethod
    def schedule(self) -> Schedule | RoundSchedule:
        """New bookkeeping, for one run over the data."""

    def steps_per_call(self, steps: int) -> int:
        """How many steps one call to a worker may take at most.

        Args:
          steps: what the model was compiled with (`steps_per_execution`).
        """
        return 1 if self.in_rounds else steps

    @property
    def exchange(self) -> Exchange:
        """The servers' side of this policy."""
        return Exchange(self.in_rounds, self.staleness_scaling)

    def require_workers(self, num_workers: int) -> None:
        """Raises `ConfigError` if the policy cannot work with so many workers.

        The trainer calls it when the policy is assigned.
        """
        del num_workers
