"""The task `evaluator` of a binary: it evaluates the job's snapshots instead of training."""

import contextlib
import os
from typing import Any

import keras
from absl import flags

import tfps
from models import network
from models.way import DatasetFn

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "monitor", "loss", "By which loss or metric the task evaluator finds the best model."
)
flags.DEFINE_integer(
    "early_stopping",
    None,
    "Evaluations in succession without a better one after which the task evaluator ends the job.",
    lower_bound=1,
)


class Evaluation:
    """The `Way` of the task evaluator.

    `fit` of its trainer evaluates the validation data on each new snapshot of the job, until the
    job has ended. A binary needs no code of its own for that. Its log_dir is a run of its own in
    the job's, and the file that it saves is the best model, among the snapshots.
    """

    chief = False  # The chief prints and saves.
    batches_per_step = 1

    def __init__(self, cluster: tfps.Cluster):
        """Checks the flags.

        Args:
          cluster: of TF_CONFIG.

        Raises:
          ConfigError: there is no folder of snapshots.
        """
        if not FLAGS.snapshots:
            raise tfps.ConfigError(
                "the task evaluator follows snapshots; give all tasks the same --snapshots=FOLDER"
            )
        self._cluster = cluster

    def scope(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def describe(self) -> str:
        return "this evaluator"

    def updates(self, steps: int) -> int:
        return network.updates(steps, self._cluster.num_workers)

    def reading(self, dataset_fn: DatasetFn) -> DatasetFn:
        return dataset_fn

    def trainer(self, model: keras.Model) -> "Evaluating":
        return Evaluating(model)

    def callbacks(self, log_dir: str) -> list[keras.callbacks.Callback]:
        return []

    def traffic(self, trainer: "Evaluating") -> str:
        return ""

    def path(self, path: str) -> str:
        is_file = bool(os.path.splitext(path)[1])
        return os.path.join(_folder(), "best.keras") if is_file else os.path.join(path, "evaluator")


class Evaluating:
    """What the task evaluator has in place of a trainer."""

    def __init__(self, model: keras.Model):
        """Takes a compiled model, made as the one that is trained."""
        self._model = model

    def fit(
        self,
        x: Any = None,
        *args: Any,
        validation_data: Any = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        batch_size: int | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Evaluates until the job has ended; arguments that concern training alone are ignored.

        Returns:
          A history in which the evaluations stand for epochs, and each value has its name with and
          without "val_". The model has the weights of the best.

        Raises:
          ConfigError: there is no validation data.
          StartupTimeout, ChiefLost: the job does not begin, or has died.
        """
        if validation_data is None:
            raise tfps.ConfigError(
                "the task evaluator has nothing to evaluate: this program gives fit no "
                "validation_data; start the job without an evaluator"
            )
        boards = [c for c in callbacks or () if isinstance(c, keras.callbacks.TensorBoard)]
        evaluator = tfps.SidecarEvaluator(
            self._model,
            validation_data,
            tfps.Snapshots(FLAGS.snapshots, every=FLAGS.snapshot_every),
            steps=validation_steps,
            batch_size=validation_batch_size or batch_size,
            monitor=FLAGS.monitor,
            early_stopping=FLAGS.early_stopping,
            directory=_folder(),
            log_dir=str(boards[0].log_dir) if boards else None,
            timeout=max(FLAGS.task_timeout, FLAGS.startup_timeout),
        )
        return self._history(evaluator.start())

    def _history(self, evaluations: list) -> keras.callbacks.History:
        history = keras.callbacks.History()
        history.set_model(self._model)
        history.on_train_begin()
        for i, one in enumerate(evaluations):
            named = {f"val_{name}": value for name, value in one.logs.items()}
            history.on_epoch_end(i, {**one.logs, **named})
        return history


def _folder() -> str:
    return os.path.join(FLAGS.snapshots, "evaluator")
