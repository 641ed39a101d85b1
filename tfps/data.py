"""Input pipelines of workers: what a `dataset_fn` is given."""

from tfps.training.context import Context

__all__ = ["Context"]
