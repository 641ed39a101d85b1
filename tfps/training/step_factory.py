"""Traces what workers run, once for each way to run it and each form of input."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from tfps.model.metric_merging import MetricMerging, merging_of
from tfps.model.own_inspection import inspect_test
from tfps.training.feeds import Feed
from tfps.training.policy import ConsistencyPolicy
from tfps.training.served_model import ServedModel
from tfps.training.server_side import ServerSide
from tfps.worker.async_step import AsyncStep
from tfps.worker.batch_loop import is_plain
from tfps.worker.eval_step import EvalStep, PredictStep, Pull
from tfps.worker.gradient import Gradient
from tfps.worker.local_copy import LocalCopy
from tfps.worker.local_sgd import LocalSGDRoundStep, LocalSGDStep
from tfps.worker.overlapped_step import OverlappedStep
from tfps.worker.own_values import OwnValues
from tfps.worker.prefetch_step import PrefetchStep
from tfps.worker.sync_step import SyncStep
from tfps.worker.worker_step import WorkerStep

_Step = TypeVar("_Step")


class Form(NamedTuple):
    """What a trace depends on of a feed.

    Attributes:
      batch: the specs of a batch, as text.
      source: the type of `Work.source`.
      single: whether every call is for one batch.
    """

    batch: str
    source: type
    single: bool

    @classmethod
    def of(cls, feed: Feed) -> "Form":
        """The form of a feed."""
        return cls(repr(feed.batch_spec), type(feed.source_spec), feed.group == 1)


class StepFactory:
    """The traced steps of one served model."""

    def __init__(self, served: ServedModel, overlap: int):
        """Starts without traces.

        Args:
          served: the model.
          overlap: how many of its own updates a gradient may miss; see `tfps.Trainer`. It is
            without effect in rounds and for local steps.
        """
        self._served = served
        self._overlap = overlap
        self._traced: dict[Hashable, Any] = {}

    def training(self, side: ServerSide, policy: ConsistencyPolicy, feed: Feed) -> WorkerStep:
        """The step by which workers train under a policy."""
        key = ("training", side, policy.delay, Form.of(feed))
        return self._once(key, lambda: self._trace_training(side, policy, feed))

    def merging(self, feed: Feed, train: bool) -> MetricMerging:
        """How the metrics of several workers are put together, in training or in evaluation."""
        return self._once(
            ("merging", train, repr(feed.batch_spec)),
            lambda: merging_of(self._served.program, feed.batch_spec, train),
        )

    def evaluation(self, feed: Feed) -> EvalStep:
        """The step that evaluates."""
        program, puller = self._served.program, self._served.puller
        single, jit = feed.group == 1, program.model.jit_compile
        return self._once(
            ("evaluation", Form.of(feed)),
            lambda: EvalStep(
                program,
                puller,
                self._own(feed, False),
                feed.source_spec,
                single,
                jit,
            ),
        )

    def prediction(self, feed: Feed) -> PredictStep:
        """The step that predicts."""
        program, puller = self._served.program, self._served.puller
        return self._once(
            ("prediction", Form.of(feed)),
            lambda: PredictStep(
                program,
                puller,
                OwnValues(program, has_metrics=False),
                feed.source_spec,
                program.model.jit_compile,
            ),
        )

    def pull(self) -> Pull:
        """What brings the parameters to a worker, for evaluation and prediction."""
        return self._once("pull", lambda: Pull(self._served.puller))

    def forget(self, side: ServerSide) -> None:
        """Lets go of the training steps of a server side that is not used any more."""
        steps = self._traced.items()
        self._traced = {k: s for k, s in steps if not (isinstance(k, tuple) and k[1] is side)}

    def _once(self, key: Hashable, make: Callable[[], _Step]) -> _Step:
        if key not in self._traced:
            self._traced[key] = make()
        return self._traced[key]

    def _own(self, feed: Feed, train: bool) -> OwnValues:
        program = self._served.program
        logs = program.logs if train else inspect_test(program, feed.batch_spec)
        return OwnValues(program, not self.merging(feed, train).additive, logs)

    def _trace_training(
        self, side: ServerSide, policy: ConsistencyPolicy, feed: Feed
    ) -> WorkerStep:
        program, puller = self._served.program, self._served.puller
        model, single = program.model, feed.group == 1
        own, optimizer = self._own(feed, True), self._served.optimizer
        if side.outer is not None:
            kind = LocalSGDRoundStep if side.exchange.in_rounds else LocalSGDStep
            local = LocalCopy(program, puller, optimizer, bool(model.jit_compile))
            return kind(local, side.pusher, own, feed.source_spec, single, side.outer, policy.delay)
        gradient = Gradient(program, puller, side.pusher, optimizer, model.jit_compile)
        if side.exchange.in_rounds:
            return SyncStep(gradient, own, feed.source_spec)
        if not self._overlap:
            return AsyncStep(gradient, own, feed.source_spec, single)
        if single and is_plain(feed.batch_spec):
            return PrefetchStep(gradient, own, feed.source_spec, feed.batch_spec, self._overlap)
        return OverlappedStep(gradient, own, feed.source_spec, single, self._overlap)
