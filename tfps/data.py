"""Input pipelines of workers: what a `dataset_fn` is given, splits, and folds for validation."""

from tfps.training.context import Context
from tfps.training.folds import kfold, shuffle_split
from tfps.training.splits import Splits, ranges

__all__ = ["Context", "Splits", "kfold", "ranges", "shuffle_split"]
