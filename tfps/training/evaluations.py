"""What an evaluator has found so far, in a file of its own, so that it may be started again."""

import json
import math
import os
from typing import NamedTuple

import keras
import tensorflow as tf

from tfps import errors
from tfps.store.snapshot_folder import FILE_ERRORS, Id


class Evaluation(NamedTuple):
    """The evaluation of one snapshot.

    Attributes:
      snapshot: which snapshot.
      fit: the number of the `fit` in which the snapshot was taken, from 1.
      epoch: the index of the epoch in which the snapshot was taken.
      step: how many batches the job had dealt out to workers by then.
      logs: the model's loss and metrics by name.
    """

    snapshot: Id
    fit: int
    epoch: int
    step: int
    logs: dict[str, float]


class Judge:
    """Says which evaluation is the best, and whether training should go on.

    The rules are those of `keras.callbacks.EarlyStopping`, an evaluation in place of an epoch.
    """

    def __init__(
        self, model: keras.Model, monitor: str, mode: str, min_delta: float, patience: int | None
    ):
        """Has seen no evaluation.

        Args:
          model: compiled; which way its metrics get better is asked of it.
          monitor: the name of the loss or metric that counts, with or without "val_".
          mode: "min", "max", or "auto" for what Keras knows of the metric.
          min_delta: by how much the best has to be beaten.
          patience: after how many evaluations without a better one training should end; None for
            never.
        """
        self.monitor = monitor.removeprefix("val_")
        self._model, self._mode = model, mode
        self._delta, self._patience = min_delta, patience
        self.reset()

    def reset(self) -> None:
        """Forgets all evaluations."""
        never = 2**31
        self.best: Evaluation | None = None
        self._count = 0
        self._keras = keras.callbacks.EarlyStopping(
            self.monitor,
            self._delta,
            never if self._patience is None else self._patience,
            mode=self._mode,
        )
        self._keras.set_model(self._model)
        self._keras.on_train_begin()

    def takes(self, evaluation: Evaluation) -> bool:
        """Counts an evaluation; returns whether it is the best so far.

        Raises:
          ConfigError: the model has no metric of the monitored name, or it is not known which way
            the metric gets better.
        """
        logs = evaluation.logs
        if self.monitor not in logs:
            raise errors.ConfigError(
                f"monitor={self.monitor!r} is none of what the model evaluates, which is "
                f"{', '.join(logs)}; name one of them"
            )
        if self.best is None and not math.isfinite(logs[self.monitor]):
            return False
        try:
            self._keras.on_epoch_end(self._count, logs)
        except ValueError as e:
            raise errors.ConfigError(
                f'monitor={self.monitor!r} may get better upwards or downwards; give mode="min" or '
                '"max"'
            ) from e
        self._count += 1
        if self._keras.wait == 0:
            self.best = evaluation
        return self._keras.wait == 0

    @property
    def verdict(self) -> str:
        """Why training should end; empty if it should go on."""
        if self.best is None or not self._keras.stopped_epoch:
            return ""
        value = self.best.logs[self.monitor]
        return (
            f"{self._keras.wait} evaluations have not beaten the {self.monitor} {value:.6g} of "
            f"{self.best.snapshot}"
        )


class Record:
    """The evaluations of a job in a file.

    Attributes:
      job: the number of the job in its folder; 0 if nothing was evaluated.
      evaluations: in the order in which they were made.
      has_ended: whether the evaluator was done with the job.
    """

    def __init__(self, path: str):
        """Reads what an evaluator has written before, if there is something that can be read.

        Args:
          path: of the file.
        """
        self._path = path
        self.job = 0
        self.evaluations: list[Evaluation] = []
        self.has_ended = False
        try:
            with tf.io.gfile.GFile(path, "r") as f:
                read = json.loads(f.read())
            found = [Evaluation(Id(*e[0]), *e[1:]) for e in read["evaluations"]]
            self.job, self.evaluations = read["job"], found
            self.has_ended = read.get("has_ended", False)
        except (*FILE_ERRORS, ValueError, KeyError, TypeError):
            pass

    def begin(self, job: int) -> None:
        """Forgets what was of another job."""
        self.job, self.evaluations, self.has_ended = job, [], False

    def add(self, evaluation: Evaluation) -> None:
        """Adds an evaluation, and writes the file.

        Raises:
          ConfigError: the file cannot be written.
        """
        self.evaluations.append(evaluation)
        self.has_ended = False
        self._write()

    def end(self) -> None:
        """Notes that the evaluator is done with the job, and writes the file.

        Raises:
          ConfigError: the file cannot be written.
        """
        self.has_ended = True
        self._write()

    def _write(self) -> None:
        content = {
            "job": self.job,
            "evaluations": self.evaluations,
            "has_ended": self.has_ended,
        }
        write(self._path, json.dumps(content).encode())


def write(path: str, data: bytes) -> None:
    """Writes a file, whole or not at all, and makes its folder.

    Raises:
      ConfigError: the file cannot be written.
    """
    draft = f"{path}.draft"
    try:
        tf.io.gfile.makedirs(os.path.dirname(path))
        with tf.io.gfile.GFile(draft, "wb") as f:
            f.write(data)
        tf.io.gfile.rename(draft, path, overwrite=True)
    except FILE_ERRORS as e:
        raise errors.ConfigError(
            f"the evaluator cannot write {path} ({errors.summary(str(e))}); give it another "
            "directory"
        ) from e
