"""What `fit`, `evaluate` and `predict` have in common: a model on the servers, and its steps."""

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfps import _keras_models
from tfps.cluster import failures, loss_policy
from tfps.cluster.calls import WorkerCalls
from tfps.cluster.loss_policy import LossPolicy
from tfps.embeddings.layer import HashEmbedding, layer_of
from tfps.model.batches import is_dense
from tfps.model.metric_merging import MetricMerging
from tfps.model.own_build import build_own
from tfps.model.stateless_model import StatelessModel
from tfps.store.growing import GrowingTable
from tfps.store.pull import Pulled
from tfps.strategy import ParameterServerStrategy
from tfps.training.auto_codecs import AutoCodecs
from tfps.training.feeds import Feed
from tfps.training.input import feed_of, is_read_by_workers, sample_of
from tfps.training.ledger import Ledger
from tfps.training.losses import Losses
from tfps.training.placing import Placing
from tfps.training.policy import ConsistencyPolicy
from tfps.training.served_model import ServedModel, Traffic
from tfps.training.server_side import ServerSide
from tfps.training.step_factory import StepFactory
from tfps.training.training_state import TrainingState

# Batches of evaluation and prediction are numbered from here, far from the steps of training: what
# layers draw depends on the number.
_FIRST_NUMBER = 1 << 40


class Session:
    """A model, its variables on the servers, the traced steps, and the state of training.

    Attributes:
      model: the Keras model.
      calls: to the workers.
      state: what training remembers.
      ledger: in which the chief notes what becomes of every batch.
      losses: what was lost since the last epoch ended.
      auto: chooses codecs while training goes on; None if there is nothing to choose.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: ParameterServerStrategy,
        overlap: int,
        traffic: Traffic,
        placing: Placing,
        warmup: int,
        limit: float,
        policy: LossPolicy = loss_policy.DEFAULT,
        ledger: str | os.PathLike | None = None,
        piece_bytes: int | None = None,
    ):
        """Starts the threads that call the workers; the servers are filled by `prepare`.

        Args:
          model: compiled.
          strategy: connected.
          overlap: how many of its own updates a gradient may miss; see `tfps.Trainer`.
          traffic: how the model travels.
          placing: on which devices of a worker the model runs.
          warmup: how many updates are applied before gradients pass through codecs.
          limit: seconds that a call on a worker may take.
          policy: what is done about lost tasks.
          ledger: see `Ledger`.
          piece_bytes: see `ParameterStore`.
        """
        self.model = model
        self.ledger, self.losses = Ledger(ledger), Losses()
        self.calls = WorkerCalls(strategy.cluster, limit, policy)
        self.state = TrainingState(self.calls, warmup, self.ledger.folder)
        self._strategy = strategy
        self._overlap = overlap
        self._traffic, self._placing = traffic, placing
        self._piece_bytes = piece_bytes
        self._served: ServedModel | None = None
        self._steps: StepFactory | None = None
        self._built: set[str] = set()  # which own steps have been traced to build the model
        self._compilation: tuple | None = None  # with which they were
        self._batches = _FIRST_NUMBER
        self._feeds: list[Feed] = []  # of the methods that are running
        self.auto: AutoCodecs | None = None
        self._warmup = warmup

    @property
    def served(self) -> ServedModel:
        """The model on the servers; to be asked for after `prepare`."""
        assert self._served is not None
        return self._served

    @property
    def steps(self) -> StepFactory:
        """The traced steps; to be asked for after `prepare`."""
        assert self._steps is not None
        return self._steps

    @property
    def is_lazy(self) -> bool:
        """Whether only those rows of a table are updated that a step has looked up."""
        return self._traffic.lazy

    @property
    def is_served(self) -> bool:
        """Whether the model is on the servers."""
        return self._served is not None

    def feed(self, x: Any, steps: int | None, group: int | None = None, **arguments: Any) -> Feed:
        """The feed for an input.

        Args:
          x: what the user gave.
          steps: batches in an epoch, or None for the whole input.
          group: batches in a call; None for `steps_per_execution`.
          **arguments: see `input.feed_of`.
        """
        calls = self.calls
        if is_read_by_workers(x):  # Their datasets are made at once.
            calls.notice()
        feed = feed_of(
            x,
            calls.num_workers,
            steps,
            group or self.model.steps_per_execution,
            calls.living,
            **arguments,
        )
        # A worker may be lost, and be back, before the feed is used.
        feed.lives = {w: calls.lives[w] if w in calls.living else None for w in calls.workers}
        self._feeds.append(feed)
        return feed

    @contextlib.contextmanager
    def closing_feeds(self) -> Iterator[None]:
        """A context at whose end the feeds that were made within are closed."""
        count = len(self._feeds)
        try:
            yield
        finally:
            feeds, self._feeds[count:] = self._feeds[count:], []
            for feed in feeds:
                feed.close()

    def prepare(self, feed: Feed, train: bool, targets: bool = True) -> None:
        """Brings the model onto the servers, and what was changed about it since.

        Args:
          feed: of the input.
          train: whether the servers need an optimizer.
          targets: whether the batches have targets.

        Raises:
          ConfigError: the model cannot be trained here.
        """
        self.calls.settle()
        mode = "train" if train else "test" if targets else "predict"
        compilation = _keras_models.compilation(self.model)
        if compilation != self._compilation:
            # What it was compiled with anew is not built yet.
            self._built, self._compilation = set(), compilation
        own = _keras_models.overrides(self.model, f"{mode}_step") or self.model.run_eagerly
        # Keras would build it by calling it on tensors that are neither sparse nor ragged.
        own = own or not is_dense(feed.batch_spec)
        if not own:
            _keras_models.build(self.model, feed.batch_spec, targets)
        elif mode not in self._built:
            # Parts that no step uses are never built.
            batch = sample_of(feed) if self.model.run_eagerly else feed.batch_spec
            build_own(self.model, batch, mode)
            self._built.add(mode)
        served = old = self._served
        if served is not None and self._has_ended(served):
            served = None
        if served is not None and (served.trains or not train):
            if self.state.is_restored:
                self._begin(served)
            else:
                # Outside of `fit` the model is the truth.
                served.store.load_if_changed()
            return
        program = served.program if served is not None else StatelessModel(self.model)
        # The old variables leave the servers before the new ones are created there, but for rows
        # that only the servers have.
        before = self._tables_before(program, old)
        self._served = self._steps = served = old = None
        self.state.end()
        gc.collect()
        served = ServedModel.create(
            program,
            self._strategy,
            self._traffic,
            feed,
            mode,
            self._placing,
            self._piece_bytes,
            before,
        )
        self._steps = StepFactory(served, self._overlap)
        self._begin(served)
        self.auto = self._auto(served)

    def _tables_before(
        self, program: StatelessModel, old: ServedModel | None
    ) -> list[GrowingTable]:
        """The tables on the servers whose rows the chief has in part, to be taken over.

        Rows that cannot be taken over are warned of.
        """
        known = {}
        if old is not None and not old.store.copy.is_lost:
            known = {id(table.layer): table for table in old.store.tables.values()}
        found = []
        for variable in [*program.trainable, *program.state]:
            layer = layer_of(variable)
            # What replaced all rows is the truth, and so is a state that waits to be restored.
            if layer is None or not layer.local.elsewhere or self.state.is_restored:
                continue
            table = known.get(id(layer))
            if table is None:
                failures.say(
                    f"{layer.local.elsewhere} rows of {variable.path} are on the servers of before "
                    "alone, and training begins without them; to go on with all rows use "
                    "snapshots=, or give trainer.state.export() to restore() of the new Trainer"
                )
            elif not table.is_replaced:
                found.append(table)
        return found

    @staticmethod
    def _has_ended(served: ServedModel) -> bool:
        """Whether another training begins, which needs variables of its own on the servers.

        As in Keras, it does when the model was compiled anew, or has other weights, but not while
        `fit` runs. It also does after an error that left the model without its optimizer's slots.
        """
        copy = served.store.copy
        if copy.is_following:
            return False
        return copy.is_lost or not served.program.is_current(served.trains)

    def _begin(self, served: ServedModel) -> None:
        served.store.copy.ask = self.calls.ask
        # If a restored state cannot be put in place, the model counts as not served.
        self._served = None
        for side in self.state.begin(served):
            self.steps.forget(side)
        self._served = served

    def enter(self, policy: ConsistencyPolicy, warming: bool) -> ServerSide:
        """Goes over to a policy, and from the warm-up of the codecs to training with them.

        Args:
          policy: to follow from now on.
          warming: whether gradients do not pass through codecs yet.

        Returns:
          The servers' side of the policy.
        """
        if self.state.warmup_is_over(policy, warming):
            for side in self.state.end_warmup():
                self.steps.forget(side)
        return self.state.side(policy.exchange, warming)

    def choose_codecs(self, policy: ConsistencyPolicy) -> None:
        """Lets `auto` choose; there is a cut now.

        Args:
          policy: that training follows.
        """
        assert self.auto is not None
        if self.auto.choose(self.served, policy):
            self.served.puller.recode()
            for side in self.state.recode():
                self.steps.forget(side)

    def _auto(self, served: ServedModel) -> AutoCodecs | None:
        plan = served.store.plan
        if not served.trains or not (plan.chooses("push") or plan.chooses("pull")):
            return None

        def say(line: str) -> None:
            self.losses.say(line)
            failures.say(line)

        return AutoCodecs(self.calls, self._overlap, self._warmup, say)

    def merging(self, feed: Feed, train: bool) -> MetricMerging:
        """How the metrics of the workers are put together, in training or in evaluation."""
        merging = self.steps.merging(feed, train)
        merging.warn(self.calls.num_workers)
        return merging

    def table(self, layer: HashEmbedding) -> tuple[np.ndarray, np.ndarray]:
        """See `tfps.Trainer.table`."""
        if self._served is None:
            return layer.table()
        store = self._served.store
        if not store.copy.is_following:
            store.load_if_changed()
        tables = {id(layer_of(store.plan.variables[i])): t for i, t in store.tables.items()}
        return tables[id(layer)].living()

    def number_batches(self, count: int) -> int:
        """Gives numbers to batches of evaluation and prediction; returns the first."""
        self._batches += count
        return self._batches - count

    def recount(self) -> None:
        """Lets the chief's copy of `iterations` be as many updates as the servers have applied."""
        self.served.store.optimizer_copy.updates.count = self.state.updates()

    def pull(self) -> list[Pulled]:
        """The parameters, on every worker."""
        pull, handles = self.steps.pull(), self.served.store.handles()
        return self.calls.run_on_each(lambda worker: pull(handles))
