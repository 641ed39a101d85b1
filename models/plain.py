"""Training in this process with plain Keras, for comparison: `--strategy=keras`."""

import contextlib
import warnings

import keras
import tensorflow as tf

import tfps
from models.way import DatasetFn


class Plain:
    """The `Way` of `--strategy=keras`: Keras's own `fit`, without a cluster."""

    chief = True
    batches_per_step = 1

    def scope(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def describe(self) -> str:
        return "one process (plain Keras)"

    def updates(self, steps: int) -> int:
        return steps

    def reading(self, dataset_fn: DatasetFn) -> tf.data.Dataset:
        return dataset_fn(tfps.Context(worker_index=0, num_workers=1))

    def trainer(self, model: keras.Model) -> keras.Model:
        # Keras says of every dataset that it is not shuffled again.
        warnings.filterwarnings("ignore", "`shuffle=True` was passed", UserWarning)
        return model

    def callbacks(self, log_dir: str) -> list[keras.callbacks.Callback]:
        return []

    def traffic(self, trainer: keras.Model) -> str:
        return ""

    def path(self, path: str) -> str:
        return path
