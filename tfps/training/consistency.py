"""The dial from asynchronous to synchronous: which worker may step when, and on what.

A policy is a value. What it decides while training runs is kept by its `schedule`;
what the servers do with a push is read from its attributes.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import keras

from tfps import errors, parsing
from tfps.model import optimizer_traits
from tfps.training.schedule import Clocks, Rounds


@dataclasses.dataclass(frozen=True)
class Async:
    """No worker ever waits for another.

    Each pulls, computes and pushes at its own pace; a push may therefore have
    been computed on weights that others have changed since. With N equal
    workers a gradient misses N - 1 updates on average (Dean et al., "Large
    Scale Distributed Deep Networks", 2012).

    Attributes:
      staleness_scaling: divide the learning rate of each push by the number of
        updates that it has missed, if there are any (Zhang et al.,
        "Staleness-aware Async-SGD for Distributed Deep Learning", 2016).
    """

    staleness_scaling: bool = False

    in_rounds: ClassVar[bool] = False
    local_steps: ClassVar[int] = 0
    delay: ClassVar[int] = 0

    def schedule(self) -> Clocks:
        """Bookkeeping for one run over the data."""
        return Clocks()

    def steps_per_call(self, steps: int) -> int:
        """How many steps a call may take where the model asks for `steps` an execution."""
        return steps


@dataclasses.dataclass(frozen=True)
class BoundedStaleness:
    """Stale synchronous parallel: no worker is far ahead of the slowest.

    A worker may start a step as long as the slowest has at most `bound` fewer
    behind it; otherwise it waits (Ho et al., "More Effective Distributed ML via a
    Stale Synchronous Parallel Parameter Server", 2013). With 0 nobody starts a
    step before everybody has finished the last one. An `overlap` of the trainer
    comes on top.

    Attributes:
      bound: steps, at least 0.
      staleness_scaling: see `Async`.
    """

    bound: int
    staleness_scaling: bool = False

    in_rounds: ClassVar[bool] = False
    local_steps: ClassVar[int] = 0
    delay: ClassVar[int] = 0

    def __post_init__(self):
        _require_count("bound", self.bound, 0)

    def schedule(self) -> Clocks:
        """Bookkeeping for one run over the data."""
        return Clocks(self.bound)

    def steps_per_call(self, steps: int) -> int:
        """See `Async`."""
        return min(steps, self.bound + 1)


@dataclasses.dataclass(frozen=True)
class Sync:
    """Rounds: one update from the gradients of all workers, computed on the same parameters.

    The gradients are averaged, weighted by the examples of their batches, so N
    workers do what one would with their batches as one (with a loss that is a
    mean over examples). Gradients are clipped by each worker before that.

    With backups, a round is over as soon as all but so many workers have
    computed; gradients that come later are dropped, never applied to a newer round
    (Chen et al., "Revisiting Distributed Synchronous SGD", 2016).

    Attributes:
      backups: workers that a round does not wait for.
    """

    backups: int = 0

    in_rounds: ClassVar[bool] = True
    local_steps: ClassVar[int] = 0
    delay: ClassVar[int] = 0
    staleness_scaling: ClassVar[bool] = False

    def __post_init__(self):
        _require_count("backups", self.backups, 0)

    def schedule(self) -> Rounds:
        """Bookkeeping for one run over the data."""
        return Rounds(self.backups)

    def steps_per_call(self, steps: int) -> int:
        """See `Async`."""
        del steps
        return 1


@dataclasses.dataclass(frozen=True)
class ModelAverage:
    """A rule for `LocalSteps`: the workers' models are averaged.

    Attributes:
      decay: how much of the servers' model stays: 0, the arithmetic mean takes
        its place; otherwise it is an exponentially weighted average of the means.
    """

    decay: float = 0.0

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise errors.ConfigError(f"decay={self.decay!r} must be at least 0 and below 1")


_OUTER = {
    "diloco": lambda: keras.optimizers.SGD(0.7, momentum=0.9, nesterov=True),
    "average": ModelAverage,
}


@dataclasses.dataclass(frozen=True, eq=False)
class LocalSteps:
    """Workers train on copies of their own and only now and then exchange what they learned.

    A worker pulls the parameters, takes `steps` steps with the compiled optimizer,
    whose state it keeps, and pushes the difference, which the servers take as a
    gradient for `outer`. Bytes per step are a `steps`-th of those of a push and
    a pull in each. This is Local SGD (Stich 2019) and, with the default outer
    optimizer, DiLoCo (Douillard et al. 2023).

    Attributes:
      steps: between two exchanges, at least 1.
      outer: a Keras optimizer, or a `ModelAverage`. "diloco" is
        `SGD(0.7, momentum=0.9, nesterov=True)`, "average" is `ModelAverage()`, and
        "sgd:1.0:0.4" is SGD with that rate and, if there is one, Nesterov momentum.
        Policies with the same `outer` and `merge` share its state on the servers.
      merge: "each": a worker's difference is applied as soon as it comes. "round":
        those of all workers are averaged, weighted by examples, and the next
        copies are pulled after that.
      delay: steps, at most `steps`, that a worker goes on with its own copy while the
        next one is on its way; then it goes on with what has come and, on that, its
        own steps since (Douillard et al., "Streaming DiLoCo with overlapping
        communication", 2025). What others have learned is used so many steps later.
        0: it waits.
    """

    steps: int
    outer: Any = "diloco"
    merge: str = "round"
    delay: int = 0

    staleness_scaling: ClassVar[bool] = False

    def __post_init__(self):
        _require_count("steps", self.steps, 1)
        if self.merge not in ("each", "round"):
            raise errors.ConfigError(f'merge={self.merge!r} must be "each" or "round"')
        _require_count("delay", self.delay, 0)
        if self.delay > self.steps:
            raise errors.ConfigError(
                f"delay={self.delay} must be at most steps={self.steps}: an exchange is over when "
                "the next one begins"
            )
        if isinstance(self.outer, str):
            object.__setattr__(self, "outer", _outer(self.outer))
        if not isinstance(self.outer, keras.optimizers.Optimizer | ModelAverage):
            raise errors.ConfigError(
                f"outer={self.outer!r} must be a Keras optimizer, a tfps.ModelAverage, "
                '"average", "diloco", or "sgd:rate:momentum" such as "sgd:1.0:0.4"'
            )
        if not isinstance(self.outer, ModelAverage):
            optimizer_traits.require_outer(self.outer)

    @property
    def in_rounds(self) -> bool:
        return self.merge == "round"

    @property
    def local_steps(self) -> int:
        return self.steps

    def schedule(self) -> Clocks | Rounds:
        """Bookkeeping for one run over the data."""
        return Rounds(steps=self.steps) if self.in_rounds else Clocks()

    def steps_per_call(self, steps: int) -> int:
        """See `Async`."""
        del steps
        return self.steps

    def outer_optimizer(self, workers: int) -> keras.optimizers.Optimizer:
        """What the servers apply differences with.

        Args:
          workers: that take part. A model average of differences that come one
            by one takes a worker's share of each.
        """
        if not isinstance(self.outer, ModelAverage):
            return self.outer
        rate = 1 - self.outer.decay
        return keras.optimizers.SGD(rate if self.in_rounds else rate / workers)


@functools.cache
def _outer(text: str):
    """What a text stands for, the same object each time; itself where that is nothing."""
    if text in _OUTER:
        return _OUTER[text]()
    kind, *numbers = text.split(":")
    try:
        rate, momentum = map(float, (*numbers, 0)[:2])
        if kind == "sgd" and 1 <= len(numbers) <= 2:
            return keras.optimizers.SGD(rate, momentum=momentum, nesterov=momentum > 0)
    except ValueError:  # No numbers, or not such as SGD takes.
        pass
    return text


Consistency = Async | BoundedStaleness | Sync | LocalSteps

POLICIES: Mapping[str, type] = {
    "async": Async,
    "bounded": BoundedStaleness,
    "sync": Sync,
    "local": LocalSteps,
}


def parse(text: str) -> Consistency:
    """The policy that a text such as "bounded:2" or "local:16,merge=each" names.

    Raises:
      ConfigError: there is no such policy, or it takes no such parameters.
    """
    return parsing.parse(text, POLICIES, "consistency")


def _require_count(name: str, value, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise errors.ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
