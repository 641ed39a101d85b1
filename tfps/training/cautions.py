"""Warnings of input that may not go on exactly where something is lost."""

import warnings

import tensorflow as tf

from tfps import _tf_cautions


def warn_of(dataset: tf.data.Dataset, whose: str) -> None:
    """Warns of what may go wrong where a dataset is read again somewhere else.

    Args:
      dataset: the user's.
      whose: "The dataset", for example.
    """
    for caution in _tf_cautions.cautions(dataset):
        warnings.warn(f"{whose} may not go on where something is lost: {caution}", stacklevel=3)


def warn_of_hooks() -> None:
    """Warns of a `PyDataset` that may reorder itself."""
    warnings.warn(
        "The PyDataset has an on_epoch_begin or on_epoch_end of its own. If it reorders "
        "the batches, then in an epoch that the loss of a parameter server or of the chief "
        "interrupts, some examples are trained on twice and others not at all; let "
        "fit(shuffle=True) order them",
        stacklevel=3,
    )


def warn_of_order(why_not: str) -> None:
    """Warns of a dataset of the chief's whose order cannot be repeated; `why_not` says why."""
    warnings.warn(
        "The order of the dataset's batches cannot be repeated "
        f"({why_not}), so in an epoch that the loss of a parameter server "
        "or of the chief interrupts, some examples are trained on twice and others not at "
        "all; give every shuffle a seed, leave out deterministic=False, or read large data "
        "from files",
        stacklevel=3,
    )
