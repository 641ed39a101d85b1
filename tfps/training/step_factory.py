"""How workers and servers work together under a consistency policy."""

import keras

from tfps import errors
from tfps.model import optimizer_traits
from tfps.model.stateless_model import StatelessModel
from tfps.store.aggregation import Applied, Summed
from tfps.store.bucket_update import CompiledOptimizer, OuterOptimizer
from tfps.store.plan import Plan
from tfps.store.pull import Puller
from tfps.store.push import Pusher
from tfps.training.consistency import Consistency, LocalSteps
from tfps.worker.async_step import AsyncStep
from tfps.worker.batch_loop import is_plain
from tfps.worker.gradient import Gradient
from tfps.worker.local_sgd import LocalSGDStep
from tfps.worker.prefetch_step import PrefetchStep
from tfps.worker.sync_step import SyncStep


def key(policy: Consistency):
    """Equal for policies that share what is on the servers."""
    if isinstance(policy, LocalSteps):
        return policy.outer, policy.merge
    return policy.in_rounds, policy.staleness_scaling


class Mode:
    """What the policies of one `key` have in common.

    Attributes:
      pusher: the traffic up.
      counts_updates: whether the compiled optimizer is on the servers.
    """

    def __init__(
        self,
        policy: Consistency,
        program: StatelessModel,
        puller: Puller,
        overlap: int,
        num_workers: int,
        coded: bool,
        frozen_at: int | None,
    ):
        """Makes what the servers need for it.

        Args:
          policy: one of those.
          program: a compiled model's.
          puller: the traffic down.
          overlap: see `AsyncStep`; without effect in rounds and local steps.
          num_workers: of the cluster.
          coded, frozen_at: see `CompiledOptimizer`.

        Raises:
          ConfigError: the optimizer's settings do not go with the policy.
        """
        self._policy, self._program, self._puller = policy, program, puller
        model, store = program.model, puller.store
        jit_compile = bool(model.jit_compile)
        self._overlap = overlap
        self.counts_updates = not policy.local_steps
        if policy.local_steps:
            require_local(model.optimizer, store.plan)
            self._outer = policy.outer_optimizer(num_workers)
            optimizer = OuterOptimizer(store, jit_compile, self._outer)
        else:
            optimizer = CompiledOptimizer(store, jit_compile, coded, frozen_at)
        if policy.in_rounds:
            update = Summed(optimizer)
        else:
            update = Applied(optimizer, skips=overlap > 0 or bool(policy.local_steps))
        self.pusher = Pusher(store, update, policy.staleness_scaling)

    def step(self, feed, delay: int) -> AsyncStep | PrefetchStep | SyncStep | LocalSGDStep:
        """Traces what a worker runs.

        Args:
          feed: whose form of input it is for.
          delay: of the policy.
        """
        model, single = self._program.model, feed.group == 1
        if self._policy.local_steps:
            return LocalSGDStep(
                self._program,
                self._puller,
                self.pusher,
                model.optimizer,
                feed.source_spec,
                single,
                model.jit_compile,
                self._policy.in_rounds,
                self._outer,
                delay,
            )
        gradient = Gradient(
            self._program, self._puller, self.pusher, model.optimizer, model.jit_compile
        )
        if self._policy.in_rounds:
            return SyncStep(gradient, feed.source_spec)
        if self._overlap and single and is_plain(feed.batch_spec):
            return PrefetchStep(gradient, feed.source_spec, feed.batch_spec, self._overlap)
        return AsyncStep(gradient, feed.source_spec, single, self._overlap)


def require_local(optimizer: keras.optimizers.Optimizer, plan: Plan | None) -> None:
    """Raises `ConfigError` for what cannot be trained on copies, as far as it is known."""
    if optimizer_traits.is_dynamically_scaled(optimizer):
        raise errors.ConfigError(
            "LocalSteps does not go with a LossScaleOptimizer, whose scale all workers share; "
            "use bfloat16, or a loss_scale_factor"
        )
    if optimizer_traits.inner(optimizer).use_ema:
        raise errors.ConfigError(
            "LocalSteps does not go with use_ema=True: the averages would be of the workers' "
            "copies; use outer=tfps.ModelAverage(decay) instead"
        )
    if plan is None:
        return
    if plan.remote:
        large = plan.specs[next(iter(plan.remote))]
        raise errors.ConfigError(
            f"LocalSteps trains on whole copies, but {large.path} {large.shape} is too large for "
            "one machine (max_chief_bytes); use Async, BoundedStaleness or Sync"
        )
    if any(bucket.kind.treatment.by_rows for bucket in plan.buckets):
        raise errors.ConfigError(
            'LocalSteps updates whole tables, which sparse_updates="lazy" does not; use "exact", '
            "or Async, BoundedStaleness or Sync"
        )
