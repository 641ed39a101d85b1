"""The feed for whatever the user gave as input."""

from collections.abc import Collection
from typing import Any

import keras
import tensorflow as tf

from tfps import errors
from tfps.model.batches import example
from tfps.training.chief_feed import ChiefFeed
from tfps.training.feeds import Feed
from tfps.training.split_feed import SplitFeed
from tfps.training.splits import Splits
from tfps.training.worker_feed import WorkerFeed


def is_read_by_workers(x: Any) -> bool:
    """Whether the workers read an input, a `dataset_fn` or splits, and not the chief."""
    if isinstance(x, Splits):
        return True
    is_data = isinstance(x, (keras.utils.PyDataset, tf.data.Dataset)) or hasattr(x, "__array__")
    return callable(x) and not is_data


def feed_of(
    x: Any,
    num_workers: int,
    steps_per_epoch: int | None,
    steps_per_execution: int,
    living: Collection[int] | None = None,
    **data: Any,
) -> Feed:
    """The feed for `x`: a `dataset_fn`, splits, or what `keras.Model.fit` takes.

    Args:
      x: the user's input.
      num_workers: of the cluster.
      steps_per_epoch: batches in an epoch, of all workers together; None for the whole input, and
        0 as well, as in Keras.
      steps_per_execution: batches in a call at most.
      living: indices of the workers that live; None for all.
      **data: y, sample_weight, batch_size, shuffle, class_weight; order, see `ChiefFeed`.

    Raises:
      DataError: a `dataset_fn` or splits were given together with arguments that belong to arrays.
    """
    steps_per_epoch = steps_per_epoch or None
    if not is_read_by_workers(x):
        return ChiefFeed(
            x=x, steps_per_epoch=steps_per_epoch, steps_per_execution=steps_per_execution, **data
        )
    for name in ("y", "sample_weight", "batch_size", "class_weight"):
        if data.get(name) is not None:
            raise errors.DataError(
                f"{name} was given together with {_name(x)}; its datasets yield whole batches, "
                "put it there"
            )
    if isinstance(x, Splits):
        return SplitFeed(x, steps_per_epoch, steps_per_execution, living)
    order = data.get("order")
    return WorkerFeed(x, num_workers, steps_per_epoch, steps_per_execution, living, order)


def sample_of(feed: Feed) -> Any:
    """A batch of a feed, to run a step on without effect; a made-up one if the feed has none.

    Args:
      feed: of the input. It still deals the batch out.
    """
    batch = feed.sample()
    return example(feed.batch_spec) if batch is None else batch


def _name(x: Any) -> str:
    return "Splits" if isinstance(x, Splits) else "a dataset_fn"
