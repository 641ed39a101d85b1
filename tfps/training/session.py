"""What `fit`, `evaluate` and `predict` have in common: a model on the servers."""

from collections.abc import Callable, Hashable

import keras

from tfps import _keras
from tfps.cluster.calls import WorkerCalls
from tfps.model.inspection import inspect
from tfps.model.stateless_model import StatelessModel
from tfps.store.parameter_store import ParameterStore
from tfps.store.plan import Plan
from tfps.store.pull import Puller
from tfps.strategy import ParameterServerStrategy
from tfps.training import feeds, step_factory
from tfps.training.consistency import Consistency
from tfps.training.step_factory import Mode
from tfps.worker.eval_step import Pull


def _warms(key) -> bool:
    """Whether it is the key of a step of the warm-up."""
    return isinstance(key, tuple) and key[0][0] == "fit" and key[0][1][1]


class Session:
    """A model, its variables on the servers, and the steps that were traced for it.

    Attributes:
      model: the Keras model.
      dispatcher: of the cluster.
      program, store, puller: of the model; None until it is prepared.
      carries: what each worker has kept of the last epoch, of gradients (False) and of
        local steps (True).
      number: of the next training step.
      outer_updates: that the servers made with the optimizer of `LocalSteps`.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: ParameterServerStrategy,
        overlap: int,
        wire: dict,
        warmup: int,
        limit: float,
    ):
        """Keeps its arguments.

        Args:
          model: compiled.
          strategy: connected.
          overlap: see `AsyncStep`.
          wire: arguments of `Plan`.
          warmup: updates before gradients pass through codecs.
          limit: s that a call on a worker may take.
        """
        self.model = model
        self.dispatcher = WorkerCalls(strategy.cluster, limit)
        self._strategy = strategy
        self._overlap = overlap
        self._wire = wire
        self._warmup = warmup
        self._frozen_at: int | None = None  # updates when codecs took over
        self.program: StatelessModel | None = None
        self.store: ParameterStore | None = None
        self.puller: Puller | None = None
        self._trains = False  # whether the store has an optimizer
        self._steps: dict = {}
        self._modes: dict = {}
        self.carries: dict[bool, list] = {}
        self.number = 0
        self.outer_updates = 0

    def feed(self, x, steps, group=None, **arguments):
        """The feed for an input; `group`: batches in a call, by default as compiled."""
        return feeds.feed(
            x,
            self._strategy.cluster.num_workers,
            steps,
            group or self.model.steps_per_execution,
            **arguments,
        )

    def prepare(self, feed, train: bool, targets: bool = True) -> None:
        """Builds the model, reads it, and creates and fills the servers' variables."""
        self.dispatcher.settle()
        _keras.build(self.model, feed.batch_spec, targets)
        if self.program and not self.program.is_current():
            # Compiled anew, or frozen in part: as in Keras, another training.
            self.program = self.store = None
        if self.store and (self._trains or not train):
            return
        self.program = self.program or StatelessModel(self.model)
        optimizer = self.model.optimizer if train else None
        inspection = inspect(self.program, feed.batch_spec, train)
        self._steps.clear()
        self._modes.clear()
        self.carries.clear()
        self.outer_updates = 0
        self._frozen_at = None
        plan = Plan(
            self._strategy.cluster.num_ps,
            self._strategy.variable_partitioner,
            self.program,
            optimizer,
            inspection,
            **self._wire,
        )
        self.store = ParameterStore(plan, optimizer)
        self.puller = Puller(self.store, optimizer)
        self._strategy.placed(plan.placement())
        self._trains = train

    def is_warming(self, policy: Consistency, updates: int) -> bool:
        """Whether gradients do not pass through codecs yet.

        Args:
          policy: in force. Local steps have no warm-up: what they push are differences.
          updates: of the compiled optimizer on the servers.
        """
        return not policy.local_steps and updates < self._warmup and self.store.plan.has_codecs

    def mode(self, policy: Consistency, warming: bool) -> tuple[Hashable, Mode]:
        """What a policy needs on the servers, made once, and what tells it from others."""
        if self._warmup and self._frozen_at is None and not (warming or policy.local_steps):
            self._frozen_at = self.store.iterations()
            # What was for the warm-up does not come back, and rounds have memory on the servers.
            self._modes = {key: made for key, made in self._modes.items() if not key[1]}
            self._steps = {key: made for key, made in self._steps.items() if not _warms(key)}
        key = step_factory.key(policy), warming
        if key not in self._modes:
            self._modes[key] = Mode(
                policy,
                self.program,
                self.puller,
                self._overlap,
                self._strategy.cluster.num_workers,
                coded=not warming,
                frozen_at=self._frozen_at,
            )
        return key, self._modes[key]

    def step(self, kind, feed, make: Callable):
        """A traced step of a kind for this form of input, made once."""
        key = (kind, repr(feed.batch_spec), type(feed.source_spec), feed.group == 1)
        if key not in self._steps:
            self._steps[key] = make()
        return self._steps[key]

    def pull(self) -> list:
        """The weights, on every worker."""
        self.store.load_if_changed()
        if "pull" not in self._steps:
            self._steps["pull"] = Pull(self.puller)
        pull, handles = self._steps["pull"], self.store.handles()
        return self.dispatcher.run_on_each(lambda worker: pull(handles))
