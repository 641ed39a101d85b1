"""Training in this process with plain Keras, for comparison: `--strategy=keras`."""

import contextlib
import warnings

import keras


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
