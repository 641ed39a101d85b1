"""The dial from asynchronous to synchronous: which worker may step when, and on what.

A policy is a value (`policy.py`). What a policy decides while training runs is kept by its schedule
(`schedule.py`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import keras

from tfps import errors, parsing
from tfps.model import optimizer_traits
from tfps.training.policy import ConsistencyPolicy, Exchange, ModelAverage
from tfps.training.schedule import Clocks, Rounds


@dataclasses.dataclass(frozen=True)
class Async(ConsistencyPolicy):
    """No worker ever waits for another worker.

    Each worker pulls, computes and pushes at its own pace. A gradient may therefore have been
    computed on parameters that other workers have changed since. With N equal workers a gradient
    misses N - 1 updates on average (Dean et al., "Large Scale Distributed Deep Networks", 2012).

    Attributes:
      staleness_scaling: whether to divide the learning rate of a push by the number of updates that
        the push has missed, if there are any (Zhang et al., "Staleness-aware Async-SGD for
        Distributed Deep Learning", 2016).
    """

    staleness_scaling: bool = False

    def schedule(self) -> Clocks:
        """See `ConsistencyPolicy`."""
        return Clocks()


@dataclasses.dataclass(frozen=True)
class BoundedStaleness(ConsistencyPolicy):
    """Stale synchronous parallel: no worker is far ahead of the slowest worker.

    A worker may start a step if it has finished at most `bound` steps more than the slowest worker;
    otherwise it waits (Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel
    Parameter Server", 2013). With 0, no worker starts a step before all workers have finished the
    last one. The trainer's `overlap` adds to the staleness.

    Attributes:
      bound: steps, at least 0.
      staleness_scaling: see `Async`.
    """

    bound: int
    staleness_scaling: bool = False

    def __post_init__(self):
        _require_count("bound", self.bound, 0)

    def schedule(self) -> Clocks:
        """See `ConsistencyPolicy`."""
        return Clocks(self.bound)

    def steps_per_call(self, steps: int) -> int:
        """See `ConsistencyPolicy`."""
        return min(steps, self.bound + 1)


@dataclasses.dataclass(frozen=True)
class Sync(ConsistencyPolicy):
    """Rounds: one update from the gradients of all workers, computed on the same parameters.

    The gradients are averaged, weighted by the number of examples in their batches. So N workers do
    what one worker would do with their batches as one, if the loss is a mean over examples. Each
    worker clips its own gradients before they are averaged.

    With backups, a round is over as soon as all but `backups` workers have computed. Gradients of
    these stragglers are dropped and never applied to a later round (Chen et al., "Revisiting
    Distributed Synchronous SGD", 2016).

    Attributes:
      backups: how many workers a round does not wait for; fewer than there are workers.
    """

    backups: int = 0

    in_rounds = True

    def __post_init__(self):
        _require_count("backups", self.backups, 0)

    def schedule(self) -> Rounds:
        """See `ConsistencyPolicy`."""
        return Rounds(self.backups)

    def require_workers(self, num_workers: int) -> None:
        """Raises `ConfigError` unless a round waits for at least one worker."""
        if self.backups >= num_workers:
            raise errors.ConfigError(
                f"{self} waits for none of {num_workers} worker{'s' if num_workers > 1 else ''}; "
                "have fewer backups than workers"
            )


_OUTER = {
    "diloco": lambda: keras.optimizers.SGD(0.7, momentum=0.9, nesterov=True),
    "average": ModelAverage,
}


@dataclasses.dataclass(frozen=True, eq=False)
class LocalSteps(ConsistencyPolicy):
    """Workers train on copies of their own and exchange what they learned now and then.

    A worker pulls the parameters, takes `steps` steps with the compiled optimizer, whose state the
    worker keeps, and pushes the pseudo-gradient: the parameters before these steps less the
    parameters after them. The servers apply it with the `outer` optimizer. So a worker sends and
    receives a `steps`-th of the bytes that it would if it pulled and pushed in each step. This is
    Local SGD (Stich 2019) and, with the default outer optimizer, DiLoCo (Douillard et al. 2023).

    Attributes:
      steps: how many steps a worker takes between two exchanges, at least 1.
      outer: a Keras optimizer, or a `ModelAverage`. "diloco" is
        `SGD(0.7, momentum=0.9, nesterov=True)`, "average" is `ModelAverage()`, and
        "sgd:1.0:0.4" is SGD with that learning rate and, if there is a second number, Nesterov
        momentum. Policies with the same `outer` and `merge` share the state of the outer optimizer.
      merge: when the servers apply pseudo-gradients. With "each", they apply one as soon as it
        comes. With "round", they apply the mean of those of all workers, weighted by examples,
        and workers pull their next copies after that.
      delay: how many steps, at most `steps`, a worker takes on its own copy while the next
        parameters are on their way. The worker then goes on with these parameters, moved by the
        steps that it has taken meanwhile (Douillard et al., "Streaming DiLoCo with overlapping
        communication", 2025). What other workers have learned is used so many steps later. With 0
        the worker waits for the parameters.
    """

    steps: int
    outer: Any = "diloco"
    merge: str = "round"
    delay: int = 0

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
    def in_rounds(self) -> bool:  # type: ignore[override]
        """Whether the workers' pseudo-gradients are averaged (`merge="round"`)."""
        return self.merge == "round"

    @property
    def local_steps(self) -> int:  # type: ignore[override]
        """See `ConsistencyPolicy`."""
        return self.steps

    @property
    def exchange(self) -> Exchange:
        """The servers' side: equal for policies with the same `outer` and `merge`."""
        return Exchange(self.in_rounds, outer=self.outer)

    def schedule(self) -> Clocks | Rounds:
        """See `ConsistencyPolicy`."""
        return Rounds(steps=self.steps) if self.in_rounds else Clocks()

    def steps_per_call(self, steps: int) -> int:
        """All steps of an exchange, whatever the model was compiled with."""
        del steps
        return self.steps


@functools.cache
def _outer(text: str):
    """What a text stands for, the same object each time. A text without meaning is returned."""
    if text in _OUTER:
        return _OUTER[text]()
    kind, *numbers = text.split(":")
    try:
        rate, momentum = [float(n) for n in (*numbers, "0")[:2]]
        if kind == "sgd" and 1 <= len(numbers) <= 2:
            return keras.optimizers.SGD(rate, momentum=momentum, nesterov=momentum > 0)
    except ValueError:  # No numbers, or not such as SGD takes.
        pass
    return text


POLICIES: Mapping[str, type[ConsistencyPolicy]] = {
    "async": Async,
    "bounded": BoundedStaleness,
    "sync": Sync,
    "local": LocalSteps,
}


def parse(text: str) -> ConsistencyPolicy:
    """The policy that a text such as "bounded:2" or "local:16,merge=each" names.

    Raises:
      ConfigError: there is no such policy, or it takes no such parameters.
    """
    return parsing.parse(text, POLICIES, "consistency")


def _require_count(name: str, value, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise errors.ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
