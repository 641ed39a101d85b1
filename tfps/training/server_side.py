"""What the servers keep and do under policies that share an exchange."""

from typing import NamedTuple

import keras

from tfps import _keras_optimizers, errors
from tfps.compression import Difference
from tfps.model import optimizer_traits
from tfps.model.optimizer_set import AnyOptimizer, OptimizerSet
from tfps.store.actors import Actors
from tfps.store.aggregation import Applied, Summed
from tfps.store.bucket_update import BucketOptimizer, CompiledOptimizer, OuterOptimizer
from tfps.store.optimizer_copy import optimizers_of
from tfps.store.plan import Plan
from tfps.store.push import Pusher
from tfps.store.server_state import AggregationState, Placed
from tfps.training.policy import Exchange
from tfps.training.served_model import ServedModel


class SideState(NamedTuple):
    """What the servers remember for one exchange.

    Attributes:
      aggregation: the outer optimizer's slots, and the sums of an open round; at a cut no round is
        open.
      outer_rate: the learning rate of the outer optimizer, or None without one.
    """

    aggregation: AggregationState
    outer_rate: float | None


class ServerSide:
    """The aggregation and the optimizer of one exchange, with their variables on the servers.

    Attributes:
      exchange: what it is for.
      pusher: the traffic up.
      outer: the optimizer that applies pseudo-gradients, or None.
    """

    def __init__(
        self,
        served: ServedModel,
        exchange: Exchange,
        num_workers: int,
        coded: bool,
        frozen_at: int | None,
        ledger: str | None = None,
    ):
        """Creates the variables on the servers.

        Args:
          served: a model with an optimizer.
          exchange: of the policies.
          num_workers: of the cluster.
          coded: whether pushes pass through codecs.
          frozen_at: how many updates were applied when Adam's second moments were frozen, or None
            while they still change.
          ledger: see `Pusher`.

        Raises:
          ConfigError: the optimizer's settings do not go with the exchange.
        """
        store, jit_compile = served.store, bool(served.program.model.jit_compile)
        self.exchange = exchange
        self.outer: keras.optimizers.Optimizer | None = None
        optimizer: BucketOptimizer
        if exchange.outer is None:
            optimizer = CompiledOptimizer(store, jit_compile, coded, frozen_at)
        else:
            assert served.optimizer is not None
            require_local(served.optimizer, store.plan)
            self.outer = exchange.outer_optimizer(num_workers)
            optimizer = OuterOptimizer(store, jit_compile, self.outer)
        self._optimizer = optimizer
        update = Summed(optimizer) if exchange.in_rounds else Applied(optimizer)
        host = served.program.devices.host
        self.pusher = Pusher(store, update, exchange.staleness_scaling, host, ledger)
        self._require_room(num_workers)
        self._actors: Actors | None = None

    def _require_room(self, num_workers: int) -> None:
        """Raises `ConfigError` if the views of all workers would not fit on a ps."""
        views, plan = self.pusher.views, self.pusher.plan
        for i in views.buckets:
            codec, p = plan.down[i].codec, plan.buckets[i].ps
            assert isinstance(codec, Difference)
            needed = num_workers * views.bytes_on(p, whole=self.outer is not None)
            if needed > codec.max_bytes:
                raise errors.ConfigError(
                    f"pull={codec!r}: ps {p} would keep a copy of its parameters for each of "
                    f"{num_workers} workers, {needed:,} bytes, and max_bytes is "
                    f"{codec.max_bytes:,}; use more ps, pull without Difference, or raise "
                    "max_bytes if the memory is there"
                )

    def actors(self) -> Actors:
        """The loops of the servers; to be asked for after a step has been traced."""
        if self._actors is None:
            self._actors = Actors(self.pusher)
        return self._actors

    def abort(self) -> None:
        """Ends the loops of the servers after an error; the next run has other ones."""
        actors, self._actors = self._actors, None
        if actors is not None:
            actors.abort()

    def placed(self) -> Placed:
        """The outer optimizers on the servers, each with its buckets; empty without one."""
        own = self._optimizer
        return [(one, own.trained(p)) for p, one in own.outer().items()]

    @property
    def outer_rate(self) -> float | None:
        """The learning rate of the outer optimizer, or None without one."""
        return None if self.outer is None else optimizer_traits.assigned_rate(self.outer)

    def export(self) -> SideState:
        """What the servers remember for the exchange, as arrays."""
        return SideState(self.pusher.export(), self.outer_rate)

    def restore(self, state: SideState) -> None:
        """Writes what `export` has read to the servers, and to the outer optimizer's rate."""
        self.pusher.restore(state.aggregation)
        if self.outer is not None and state.outer_rate is not None:
            self.outer.learning_rate = state.outer_rate


def require_local(optimizer: AnyOptimizer, plan: Plan | None) -> None:
    """Raises `ConfigError` for a model that cannot be trained on copies.

    Args:
      optimizer: the one that the model was compiled with, or several.
      plan: of the model; None if it is not known yet.
    """
    if optimizer_traits.is_dynamically_scaled(optimizer):
        raise errors.ConfigError(
            "LocalSteps does not go with a LossScaleOptimizer, whose scale all workers share; "
            "use bfloat16, or a loss_scale_factor"
        )
    if isinstance(optimizer, OptimizerSet) and optimizer.calls:
        raise errors.ConfigError(
            f"LocalSteps applies an optimizer once in a step, but the train_step has "
            f"{list(optimizer.num_calls)} calls of its optimizers' apply; use Async, "
            "BoundedStaleness or Sync"
        )
    if (
        len(optimizers := optimizers_of(optimizer)) > 1
        or len(_keras_optimizers.nested(optimizers[0])) > 1
    ):
        raise errors.ConfigError(
            "LocalSteps does not go with several optimizers (MultiOptimizer), whose learning rates "
            "are on the servers; use one optimizer, or Async, BoundedStaleness or Sync"
        )
    if optimizer_traits.inner(optimizer).use_ema:
        raise errors.ConfigError(
            "LocalSteps does not go with use_ema=True: the averages would be of the workers' "
            "copies; use outer=tfps.ModelAverage(decay) instead"
        )
    if plan is None:
        return
    if plan.chooses("push") or plan.chooses("pull"):
        raise errors.ConfigError(
            'LocalSteps does not go with push="auto" or pull="auto", which are chosen for '
            "steps that exchange; name the codecs, or use Async, BoundedStaleness or Sync"
        )
    if plan.remote:
        large = plan.specs[next(iter(plan.remote))]
        raise errors.ConfigError(
            f"LocalSteps trains on whole copies, but {large.path} {large.shape} is too large for "
            "one machine (max_chief_bytes); use Async, BoundedStaleness or Sync"
        )
    if plan.hashed:
        path = plan.specs[next(iter(plan.hashed))].path
        raise errors.ConfigError(
            f"LocalSteps trains on whole copies, but {path} grows on the servers; use Async, "
            "BoundedStaleness or Sync"
        )
    if any(bucket.kind.treatment.by_rows for bucket in plan.buckets):
        raise errors.ConfigError(
            'LocalSteps updates whole tables, which sparse_updates="lazy" does not; use "exact", '
            "or Async, BoundedStaleness or Sync"
        )
