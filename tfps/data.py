"""Input pipelines of workers: what a `dataset_fn` is given."""

from tfps.training.feeds import Context

__all__ = ["Context"]
