"""What a training state is at a cut, as values."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from tfps.store.placement import Shard
from tfps.store.server_state import ServerState
from tfps.store.snapshot_reading import SavedServers
from tfps.training.feeds import FeedPosition
from tfps.training.server_side import SideState
from tfps.worker.tally import Tally
from tfps.worker.worker_step import WorkerMemory


@dataclasses.dataclass
class OpenEpoch:
    """An epoch of which some batches have been trained on.

    Attributes:
      batches: how many.
      seconds: s that they took.
      tally: of their reports.
      totals: per metric variable, the sum over the workers' reports; float64.
      latest: worker -> its own values of the metric variables, where workers carry them through
        the epoch; float64. A worker below 0 is one that does not go on.
      extras: logs of the last batch that are of one batch.
    """

    batches: int
    seconds: float
    tally: Tally
    totals: list[np.ndarray]
    latest: dict[int, list[np.ndarray]]
    extras: list[np.ndarray]


@dataclasses.dataclass
class ChiefState:
    """What the chief remembers.

    Attributes:
      step_number: of the next training step. It seeds dropout and codecs, so no number is used
        twice, not even after the variables were created anew.
      outer_updates: how many updates the servers made with the outer optimizer of `LocalSteps`.
      frozen_at: how many updates were applied when the warm-up of the codecs ended and Adam's
        second moments were frozen; None before that, or without a warm-up.
      epoch: index of the epoch with which the present or last `fit` goes on.
      history: (index, logs) of each of these epochs, and of those before them.
      position: where the input of the present or last `fit` is; None before its first cut.
      batch_hooks: how often the present or last `fit` has called hooks before batches.
      open: the epoch that has begun, at a cut in the middle of an epoch; None between epochs.
      learning_rate: of the compiled optimizer; None where a schedule or a callable gives it, and
        for several optimizers, whose rates are on the servers.
      seeds: int arrays, the model's random seeds, which are folded with the step number.
    """

    step_number: int = 0
    outer_updates: int = 0
    frozen_at: int | None = None
    epoch: int = 0
    history: list[tuple[int, dict[str, Any]]] = dataclasses.field(default_factory=list)
    position: FeedPosition | None = None
    batch_hooks: int = 0
    open: OpenEpoch | None = None
    learning_rate: float | None = None
    seeds: list[np.ndarray] = dataclasses.field(default_factory=list)


class Exported(NamedTuple):
    """A training state at a cut, as values: nothing in it lives on a server or a worker.

    Attributes:
      servers: of the store, as arrays, or in the files of a snapshot.
      sides: name of an exchange -> what its server side remembers.
      workers: "gradients" or "pseudo-gradients" -> per worker, its memory as arrays, by bucket;
        None for one that was lost.
      layout: per bucket, its shards, by which the workers' memory is laid out.
      chief: a copy.
      own: per worker, its values of the variables that the model does not list, such as the states
        of a stateful RNN; empty if there are none.
    """

    servers: ServerState | SavedServers
    sides: dict[str, SideState]
    workers: dict[str, list[WorkerMemory | None]]
    layout: list[tuple[Shard, ...]]
    chief: ChiefState
    own: list[list[np.ndarray]]
