"""All that training must remember, in one place.

- On the servers: values, optimizer slots, versions and the loss scale (`ParameterStore`), the
  slots of the outer optimizer and the sums of open rounds (`ServerSide`).
- On each worker: the residuals of the codecs, and the worker's own optimizer in `LocalSteps`
  (`WorkerMemory`); the worker's own values of variables that are on no server, such as the states
  of stateful RNNs (`OwnState`).
- On the chief: step number, epoch, position in the data, history, learning rate, seeds
  (`ChiefState`).

A state is exported and restored at a cut: a moment at which no call to a worker is outstanding,
such as the end of an epoch.
"""

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfps import errors
from tfps.cluster.calls import WorkerCalls
from tfps.model import optimizer_traits
from tfps.store.placement import Shard
from tfps.store.snapshot_form import Form
from tfps.store.snapshot_reading import SavedServers
from tfps.training.exported_state import ChiefState, Exported, OpenEpoch
from tfps.training.feeds import FeedPosition
from tfps.training.kept_memory import KeptMemory
from tfps.training.own_state import OwnState
from tfps.training.policy import ConsistencyPolicy, Exchange
from tfps.training.served_model import ServedModel
from tfps.training.server_side import ServerSide, SideState
from tfps.training.worker_memory import refitted
from tfps.worker.worker_step import WorkerMemory


class TrainingState:
    """The live state of a trainer.

    Attributes:
      chief: what the chief remembers.
      carries: per worker, what it carries from call to call in the run that is under way; empty
        between runs, when all that is left of a carry is the worker's memory.
      own: what every worker has of its own of the model's variables.
    """

    def __init__(self, calls: WorkerCalls, warmup: int, ledger: str | None = None):
        """Starts with nothing on the servers.

        Args:
          calls: to the workers.
          warmup: how many updates are applied before gradients pass through codecs.
          ledger: folder in which each ps notes what it gets, or None.
        """
        self._ledger = ledger
        self.chief = ChiefState()
        self.carries: list[Any] = []
        self.own = OwnState(calls)
        self._calls = calls
        self._warmup = warmup
        self._served: ServedModel | None = None
        self._sides: dict[tuple[Exchange, bool], ServerSide] = {}
        self._memory = KeptMemory(calls)
        self._restored_sides: dict[str, SideState] = {}
        self._restored: Exported | None = None  # what the servers' variables are to be filled with
        self._resumes = self._fits = False

    @property
    def is_restored(self) -> bool:
        """Whether a state waits for `begin`."""
        return self._restored is not None

    def begin(self, served: ServedModel) -> list[ServerSide]:
        """Begins with variables that were created anew, or from a state that was restored.

        What was remembered about the variables before is forgotten. A restored state is put in
        place; if the servers have no optimizer, only its values are, and it waits on.

        Args:
          served: the model on the servers.

        Returns:
          The server sides that are not used any more.

        Raises:
          ConfigError: the restored state is of another model, optimizer or number of workers.
        """
        ended = self.end()
        self._served = served
        if self._restored is not None and served.trains:
            self._put_in_place(served, self._restored)
            self._restored = None
        elif self._restored is not None:
            served.store.restore(self._restored.servers)
        return ended

    def end(self) -> list[ServerSide]:
        """Forgets all about the servers' variables; returns their server sides."""
        ended = list(self._sides.values())
        self._served = None
        self._sides, self._restored_sides = {}, {}
        self._memory.forget()
        self.carries = []
        self.own.forget()
        self.chief.outer_updates, self.chief.frozen_at = 0, None
        return ended

    # The servers.

    def updates(self) -> int:
        """How many updates the servers have applied, with whatever optimizer."""
        iterations = self._calls.ask(self._require_served().store.iterations)
        return iterations + self.chief.outer_updates

    def is_warming(self, policy: ConsistencyPolicy, updates: int) -> bool:
        """Whether gradients do not pass through codecs yet.

        Args:
          policy: in force. There is no warm-up for pseudo-gradients.
          updates: of the compiled optimizer on the servers.
        """
        warms = policy.exchange.outer is None and updates < self._warmup
        return warms and self._require_served().store.plan.has_codecs

    def end_warmup(self) -> list[ServerSide]:
        """Freezes Adam's second moments; returns the server sides that are not used any more."""
        self.chief.frozen_at = self._calls.ask(self._require_served().store.iterations)
        ended = [side for (_, warming), side in self._sides.items() if warming]
        self._sides = {key: side for key, side in self._sides.items() if not key[1]}
        return ended

    def recode(self) -> list[ServerSide]:
        """Lets go of the server sides, since codecs have changed; returns them.

        No call is under way, and no round is open. Residuals go on where they fit.
        """
        ended = list(self._sides.values())
        self._sides = {}
        return ended

    def warmup_is_over(self, policy: ConsistencyPolicy, warming: bool) -> bool:
        """Whether `end_warmup` is due: there is a warm-up, and training goes on without it."""
        ends = bool(self._warmup) and self.chief.frozen_at is None and not warming
        return ends and policy.exchange.outer is None

    def side(self, exchange: Exchange, warming: bool) -> ServerSide:
        """The servers' side of an exchange, created when it is first asked for."""
        key = exchange, warming
        if key not in self._sides:
            side = ServerSide(
                self._require_served(),
                exchange,
                self._calls.num_workers,
                coded=not warming,
                frozen_at=self.chief.frozen_at,
                ledger=self._ledger,
            )
            if restored := self._restored_sides.pop(exchange.name, None):
                side.restore(restored)
            self._sides[key] = side
        return self._sides[key]

    # The workers.

    def take_memory(self, exchange: Exchange) -> list[WorkerMemory | None]:
        """Per worker, what it has kept for such an exchange, or None; the state lets go of it.

        A worker that was lost since, and may be back, has kept nothing.
        Error-feedback residuals outlive epochs and policies, but the residuals of gradients and
        those of pseudo-gradients are kept apart.
        """
        return self._memory.take(_kind(exchange))

    def keep_memory(self, exchange: Exchange, memory: list[WorkerMemory | None]) -> None:
        """Keeps what each worker remembers until `take_memory`."""
        self._memory.keep(_kind(exchange), memory)

    # The chief.

    def number_steps(self, count: int) -> int:
        """The first of `count` step numbers that no other step gets."""
        first = self.chief.step_number
        self.chief.step_number += count
        return first

    def note_epoch(self, epoch: int, logs: dict[str, float], position: FeedPosition) -> None:
        """Notes that an epoch of `fit` has ended.

        Args:
          epoch: index.
          logs: of the epoch.
          position: where the input is now.
        """
        self.chief.epoch = epoch + 1
        self.chief.position, self.chief.open = position, None
        self.chief.history.append((epoch, logs))

    def note_logs(self, logs: dict[str, Any]) -> None:
        """Notes the logs of the epoch that has ended, with what callbacks have added since."""
        self.chief.history[-1] = self.chief.history[-1][0], logs

    def begin_fit(self) -> ChiefState | None:
        """What a `fit` goes on from: the chief's part of a restored state, once; else None."""
        resumes, self._resumes, self._fits = self._resumes, False, True
        if resumes:
            return self.chief
        self.chief.epoch, self.chief.history, self.chief.batch_hooks = 0, [], 0
        self.chief.position = self.chief.open = None
        return None

    def begin_epoch(self, epoch: int) -> OpenEpoch | None:
        """Notes that an epoch of `fit` begins.

        Args:
          epoch: index.

        Returns:
          What the epoch is to go on from, if it had begun before; else None.
        """
        self.chief.epoch = epoch
        opened, self.chief.open = self.chief.open, None
        return opened

    def note_beginning(self, epoch: int, position: FeedPosition) -> None:
        """Notes where a `fit` begins.

        Args:
          epoch: index of its first epoch.
          position: where the input is.
        """
        self.chief.epoch, self.chief.position = epoch, position

    def note_open(self, epoch: OpenEpoch, position: FeedPosition) -> None:
        """Notes how far an epoch of `fit` has come, at a cut.

        Args:
          epoch: of which some batches have been trained on.
          position: where the input is now.
        """
        self.chief.open, self.chief.position = epoch, position

    def end_fit(self) -> None:
        """Notes that `fit` is over, in whatever way."""
        self._fits = False

    # All of it.

    def export(self) -> Exported:
        """Everything that training remembers, as values; to be called at a cut.

        A table that is too large for the chief (`max_chief_bytes`) comes to the chief as well.

        Raises:
          ConfigError: nothing has been trained yet, or workers are in the middle of a step.
        """
        if self._restored is not None:
            return self._restored
        served = self._require_served()
        if self._calls.pending or self.carries:
            raise errors.ConfigError(
                "workers are in the middle of an epoch, so there is no cut to export; export from "
                "on_epoch_end or after fit, not from a hook of a batch"
            )
        self._calls.settle()
        assert served.optimizer is not None
        sides = self.sides_in_use()
        return Exported(
            self._calls.ask(served.store.export),
            {**self._restored_sides, **{name: side.export() for name, side in sides.items()}},
            self.memory(),
            _layout(served),
            self.chief_now(),
            self.own.export(),
        )

    def chief_now(self) -> ChiefState:
        """A copy of what the chief remembers, with the learning rate and the seeds of now."""
        served = self._require_served()
        assert served.optimizer is not None
        return dataclasses.replace(
            copy.deepcopy(self.chief),
            learning_rate=optimizer_traits.assigned_rate(served.optimizer),
            seeds=[np.array(seed) for seed in served.program.base_seeds],
        )

    def memory(self) -> dict[str, list[WorkerMemory | None]]:
        """What workers have kept, as arrays; see `Exported.workers`."""
        return self._memory.read()

    def sides_in_use(self) -> dict[str, ServerSide]:
        """Name of an exchange -> the servers' side of it, for those whose state outlives a cut.

        Raises:
          ConfigError: two of them cannot be told apart.
        """
        sides = [side for (_, warming), side in self._sides.items() if not warming]
        names = [side.exchange.name for side in sides]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise errors.ConfigError(
                f"two outer optimizers have equal settings, {twice}, so their slots could not be "
                "told apart; give policies that should share one the same object"
            )
        return dict(zip(names, sides, strict=True))

    @property
    def sides_restored(self) -> dict[str, SideState]:
        """Name of an exchange -> its restored state, until a policy with the exchange is used."""
        return self._restored_sides

    def restore(self, exported: Exported) -> None:
        """Makes the next `fit` go on where a state was exported, in this cluster.

        The servers may be others. Their number, and the partitioner, may be others too if workers
        remember nothing, neither residuals nor an inner optimizer. The epoch, the position in the
        data and the history go on if `fit` is given the same input and `epochs`.

        Args:
          exported: of a trainer of the same model, compiled alike.

        Raises:
          ConfigError: a `fit` is running, or the state is of another number of workers. That the
            model or the optimizer is another one is found when the state is put in place.
        """
        if self._fits:
            raise errors.ConfigError(
                "a state cannot be restored while fit runs; end it (model.stop_training = True), "
                "restore, and call fit again"
            )
        if isinstance(exported.servers, SavedServers):
            self._restored = exported
            return
        kinds: dict[str, list[Any]] = {**exported.workers, "own values": exported.own}
        for kind, memory in kinds.items():
            if memory and len(memory) != self._calls.num_workers:
                raise errors.ConfigError(
                    f"the state has the {kind} of {len(memory)} workers, but there are "
                    f"{self._calls.num_workers}; restore with as many workers as before"
                )
        self._restored = exported

    def _put_in_place(self, served: ServedModel, exported: Exported) -> None:
        remembers = bool(tf.nest.flatten(exported.workers))
        is_saved = isinstance(exported.servers, SavedServers)
        if remembers and not is_saved and exported.layout != _layout(served):
            raise errors.ConfigError(
                "the workers' memory (residuals of codecs, inner optimizers) is laid out for other "
                "servers; restore with as many servers and the partitioner of before"
            )
        self._calls.settle()
        served.store.restore(exported.servers, exported.chief.outer_updates)
        self._put_chief_in_place(served, exported)
        self._resumes = True

    def _put_chief_in_place(self, served: ServedModel, exported: Exported) -> None:
        """Puts in place all that is not on the servers."""
        workers = self._refitted(exported, _layout(served))
        self.chief = dataclasses.replace(copy.deepcopy(exported.chief), seeds=[])
        served.program.base_seeds = exported.chief.seeds
        rate = exported.chief.learning_rate
        if rate is not None:
            optimizer_traits.each(served.optimizer)[0].learning_rate = rate
        self._memory.forget()
        for kind, memory in workers.items():
            self._memory.keep(kind, self._calls.run_on_each(_placing(memory)))
        self.own.restore(exported.own)
        self._restored_sides = dict(exported.sides)

    def _refitted(
        self, exported: Exported, layout: list[tuple[Shard, ...]]
    ) -> dict[str, Sequence[WorkerMemory | None]]:
        """The workers' memory for the workers and the layout of now; None for one that was lost."""
        num_workers = self._calls.num_workers
        found: dict[str, Sequence[WorkerMemory | None]] = {}
        for kind, memory in exported.workers.items():
            if exported.layout == layout and len(memory) == num_workers:
                found[kind] = memory
                continue
            found[kind], lost = refitted(memory, exported.layout, layout, num_workers)
            if lost:
                warnings.warn(
                    f"{' and '.join(lost)} are laid out for the servers of before; workers begin "
                    "without them",
                    stacklevel=2,
                )
        return {kind: memory for kind, memory in found.items() if memory}

    def renew(self, servers: Collection[int]) -> None:
        """Makes all variables of lost servers anew, without values, under the same objects.

        To be called at a time at which nothing is outstanding, once the servers are connected
        again. `refill` or `go_back` has to follow.

        Args:
          servers: indices of the parameter servers.
        """

        # A ps that was lost between two runs of its loop has the loop's queues no more.
        for side in self._sides.values():
            side.abort()

        def renew() -> None:
            self._require_served().store.renew(servers)
            for side in self._sides.values():
                side.pusher.renew(servers)

        self._calls.ask(renew)

    def refill(self, servers: Collection[int], saved: SavedServers) -> None:
        """Gives some servers what they had in a snapshot; the others keep what they have.

        Raises:
          ConfigError: the variables of the snapshot lay in another way on the servers.
          SnapshotDamaged: a part cannot be read.
        """
        served = self._require_served()
        placed = {side.exchange.name: side.placed() for side in self._sides.values()}
        if not saved.form.is_laid_out_as(Form.of(served.store, {})):
            raise errors.ConfigError(
                "the newest snapshot was taken on another number of servers or with another "
                "partitioner, so what a lost server had is in no one part of it"
            )
        self._calls.ask(lambda: saved.fill_ps(served.store, servers, placed))
        served.store.copy.outdate()

    def go_back(self, exported: Exported) -> list[ServerSide]:
        """Lets the running `fit` go on from a state, on servers, workers and here.

        Args:
          exported: of this model.

        Returns:
          The server sides that did not exist then, and are not used any more.

        Raises:
          SnapshotDamaged: the state's files cannot be read.
        """
        served = self._require_served()
        froze = self.chief.frozen_at != exported.chief.frozen_at
        later = [
            key
            for key, side in self._sides.items()
            if (side.outer is not None and side.exchange.name not in exported.sides)
            or (side.outer is None and froze)
        ]
        ended = [self._sides.pop(key) for key in later]
        kept = {side.exchange.name: side for side in self._sides.values()}
        self.own.forget()
        self._memory.forget()
        self.carries = []
        self._calls.ask(lambda: served.store.fill(exported.servers))
        served.store.copy.outdate()
        self._put_chief_in_place(served, exported)
        for name in kept.keys() & self._restored_sides.keys():
            restore = functools.partial(kept[name].restore, self._restored_sides.pop(name))
            self._calls.ask(restore)
        return ended

    def _require_served(self) -> ServedModel:
        if self._served is None:
            raise errors.ConfigError(
                "the model is not on the servers yet, so training has no state; call fit first"
            )
        return self._served


def _layout(served: ServedModel) -> list[tuple[Shard, ...]]:
    return [bucket.shards for bucket in served.store.plan.buckets]


def _kind(exchange: Exchange) -> str:
    return "gradients" if exchange.outer is None else "pseudo-gradients"


def _placing(memory: Sequence[WorkerMemory | None]) -> Callable[[int], WorkerMemory | None]:
    """What copies a worker's own memory to the device under which it is called.

    A worker that was lost when the memory was saved has none.
    """

    def place(worker: int) -> WorkerMemory | None:
        mine = memory[worker]
        return None if mine is None else tf.nest.map_structure(tf.constant, mine)

    return place
