"""Traces what workers run, once for each way to run it and each form of input."""

import warnings
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from tfps import errors
from tfps.model.eager_inspection import inspect_test_eagerly
from tfps.model.metric_merging import MetricMerging, merging_of, untraced
from tfps.model.own_inspection import inspect_test
from tfps.model.step_logs import Logs
from tfps.training.feeds import Feed
from tfps.training.input import sample_of
from tfps.training.policy import ConsistencyPolicy
from tfps.training.served_model import ServedModel
from tfps.training.server_side import ServerSide
from tfps.worker.async_step import AsyncStep
from tfps.worker.batch_loop import is_plain
from tfps.worker.eager_step import EagerEvalStep, EagerPredictStep, EagerStep, EagerSyncStep
from tfps.worker.eval_step import EvalStep, PredictStep, Pull
from tfps.worker.gradient import Gradient
from tfps.worker.local_copy import LocalCopy
from tfps.worker.local_sgd import LocalSGDRoundStep, LocalSGDStep
from tfps.worker.overlapped_step import OverlappedStep
from tfps.worker.own_values import OwnValues
from tfps.worker.prefetch_step import PrefetchStep
from tfps.worker.sync_step import SyncStep
from tfps.worker.worker_step import RepeatableStep, WorkerStep

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
        return cls(repr(feed.batch_spec), type(feed.source_spec), feed.is_single)


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
        self._warned: set[str] = set()  # paths of variables

    def training(self, side: ServerSide, policy: ConsistencyPolicy, feed: Feed) -> WorkerStep:
        """The step by which workers train under a policy."""
        key = ("training", side, policy.delay, Form.of(feed))
        return self._once(key, lambda: self._trace_training(side, policy, feed))

    def repeating(self, side: ServerSide, policy: ConsistencyPolicy, feed: Feed) -> RepeatableStep:
        """The step by which a worker does again what another one has lost; not for rounds."""
        step = self.training(side, policy, feed)
        # What is done again leaves the worker's copies alone, which may be ahead in its own carry.
        tracked = isinstance(step, AsyncStep) and side.pusher.views.buckets
        if isinstance(step, (AsyncStep, LocalSGDStep)) and not tracked:
            return step
        key = ("repeating", side, Form.of(feed))
        return self._once(key, lambda: self._trace_repeating(side, feed))

    def _trace_repeating(self, side: ServerSide, feed: Feed) -> AsyncStep:
        program, puller = self._served.program, self._served.puller.without_views()
        optimizer = self._served.optimizer
        if program.model.run_eagerly:
            gradient = Gradient(program, puller, side.pusher, optimizer, False)
            return EagerStep(gradient, self._own(feed, True), feed.batch_spec)
        gradient = Gradient(program, puller, side.pusher, optimizer, program.model.jit_compile)
        return AsyncStep(gradient, self._own(feed, True), feed.source_spec, feed.is_single)

    def merging(self, feed: Feed, train: bool) -> MetricMerging:
        """How the metrics of several workers are put together, in training or in evaluation."""
        return self._once(
            ("merging", train, repr(feed.batch_spec)), lambda: self._find_merging(feed, train)
        )

    def _find_merging(self, feed: Feed, train: bool) -> MetricMerging:
        program = self._served.program
        if program.model.run_eagerly:
            return untraced(program)
        return merging_of(program, feed.batch_spec, train, self._logs(feed, train))

    def evaluation(self, feed: Feed) -> EvalStep | EagerEvalStep:
        """The step that evaluates."""
        program, puller = self._served.program, self._served.puller
        single, jit = feed.is_single, program.model.jit_compile

        def make():
            own = self._own(feed, False)
            if program.model.run_eagerly:
                return EagerEvalStep(program, puller, own)
            return EvalStep(program, puller, own, feed.source_spec, single, jit)

        return self._once(("evaluation", Form.of(feed)), lambda: self._inferring(make))

    def prediction(self, feed: Feed) -> PredictStep | EagerPredictStep:
        """The step that predicts."""
        program, puller = self._served.program, self._served.puller

        def make():
            own = OwnValues(program, has_metrics=False)
            if program.model.run_eagerly:
                return EagerPredictStep(program, puller, own)
            return PredictStep(program, puller, own, feed.source_spec, program.model.jit_compile)

        return self._once(("prediction", Form.of(feed)), lambda: self._inferring(make))

    def _inferring(self, make: Callable[[], _Step]) -> _Step:
        """A traced step of evaluation or prediction.

        It may assign variables that no step before it has assigned. If the model does not list
        them, each worker has its own, which steps take and return; so all are traced anew.
        """
        program = self._served.program
        with program.noting() as assigned:
            step = make()
        if lost := [v.path for v in assigned if v.path not in self._warned]:
            self._warned |= set(lost)
            warnings.warn(
                f"{type(program.model).__name__} assigns {lost} in an evaluation or prediction; "
                "the servers keep the values that training gives them, so what is assigned is used "
                "within the batch and then lost; assign them in training only, or keep what is to "
                "last in a metric",
                stacklevel=2,
            )
        known = set(map(id, program.unlisted))
        new = [v for v in program.found_unlisted() if id(v) not in known]
        if not new:
            return step
        program.unlisted = [*program.unlisted, *new]
        self._traced = {key: one for key, one in self._traced.items() if key == "pull"}
        return make()

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
        carries = not self.merging(feed, train).additive
        return OwnValues(self._served.program, carries, self._logs(feed, train))

    def _logs(self, feed: Feed, train: bool) -> Logs | None:
        program = self._served.program
        if train:
            return program.logs

        def find() -> Logs | None:
            if program.model.run_eagerly:
                return inspect_test_eagerly(program, sample_of(feed))
            return inspect_test(program, feed.batch_spec)

        return self._once(("logs", repr(feed.batch_spec)), find)

    def _trace_training(
        self, side: ServerSide, policy: ConsistencyPolicy, feed: Feed
    ) -> WorkerStep:
        program, puller = self._served.program, self._served.puller
        model, single = program.model, feed.is_single
        own, optimizer = self._own(feed, True), self._served.optimizer
        if side.outer is not None:
            if model.run_eagerly:
                raise errors.ConfigError(
                    "run_eagerly=True does not go with LocalSteps, whose workers train by "
                    "themselves; use Async, BoundedStaleness or Sync to debug"
                )
            kind = LocalSGDRoundStep if side.exchange.in_rounds else LocalSGDStep
            local = LocalCopy(program, puller, optimizer, bool(model.jit_compile))
            return kind(local, side.pusher, own, feed.source_spec, single, side.outer, policy.delay)
        gradient = Gradient(program, puller, side.pusher, optimizer, model.jit_compile)
        if model.run_eagerly:
            eager = EagerSyncStep if side.exchange.in_rounds else EagerStep
            return eager(gradient, own, feed.batch_spec)
        if side.exchange.in_rounds:
            return SyncStep(gradient, own, feed.source_spec)
        if not self._overlap:
            return AsyncStep(gradient, own, feed.source_spec, single)
        if single and is_plain(feed.batch_spec):
            return PrefetchStep(gradient, own, feed.source_spec, feed.batch_spec, self._overlap)
        return OverlappedStep(gradient, own, feed.source_spec, single, self._overlap)
