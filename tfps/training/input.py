"""The feed for whatever the user gave as input."""

from typing import Any

from tfps import errors
from tfps.training.chief_feed import ChiefFeed
from tfps.training.feeds import Feed
from tfps.training.worker_feed import WorkerFeed


def feed_of(
    x: Any,
    num_workers: int,
    steps_per_epoch: int | None,
    steps_per_execution: int,
    **data: Any,
) -> Feed:
    """The feed for `x`, a `dataset_fn` or what `keras.Model.fit` takes.

    Args:
      x: the user's input.
      num_workers: of the cluster.
      steps_per_epoch: batches in an epoch, of all workers together; None for the whole input.
      steps_per_execution: batches in a call at most.
      **data: y, sample_weight, batch_size, shuffle, class_weight; order, see `ChiefFeed`.

    Raises:
      DataError: a `dataset_fn` was given together with arguments that belong to arrays.
    """
    if not callable(x):
        return ChiefFeed(
            x=x, steps_per_epoch=steps_per_epoch, steps_per_execution=steps_per_execution, **data
        )
    for name in ("y", "sample_weight", "batch_size", "class_weight"):
        if data.get(name) is not None:
            raise errors.DataError(
                f"{name} was given together with a dataset_fn; its dataset yields whole batches, "
                "put it there"
            )
    return WorkerFeed(x, num_workers, steps_per_epoch, steps_per_execution)
