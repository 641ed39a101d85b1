"""`SidecarEvaluator`: evaluates the snapshots of a job beside it, on a machine of its own."""

import inspect
import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_models, errors
from tfps.cluster import failures
from tfps.store.snapshot_folder import FILE_ERRORS, Folder, Manifest
from tfps.store.snapshot_form import Form
from tfps.store.snapshot_places import of_manifest
from tfps.store.snapshot_reading import SavedServers
from tfps.training import snapshots as settings
from tfps.training.context import Context
from tfps.training.evaluations import Evaluation, Judge, Record, write
from tfps.training.input import feed_of, is_read_by_workers
from tfps.training.model_filling import Filling
from tfps.training.snapshot_files import chief_of
from tfps.training.snapshot_follower import Follower
from tfps.training.snapshots import Snapshots
from tfps.training.splits import Splits


class SidecarEvaluator:
    """Evaluates each new snapshot of a job in plain Keras, and keeps the best model.

    It is what `tf.keras.utils.SidecarEvaluator` is to checkpoints. It needs no connection to the
    job, only the folder of the job's snapshots: it reads there, and writes into its own folder.
    Snapshots that are taken while it evaluates are passed over, but for the newest. It ends when
    the job's `fit` has ended and the last snapshot is evaluated.

    An evaluator that is started again goes on where it was, with what it found to be the best.

    Attributes:
      model: the Keras model. It has the weights of the snapshot that was evaluated last, and after
        `start` those of the best.
      directory: its own folder, a path. It has the model that is the best so far, `best.keras`;
        TensorBoard's files below `board` unless `log_dir` was given; and a record of what was
        evaluated.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        snapshots: Snapshots | str | os.PathLike,
        steps: int | None = None,
        max_evaluations: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        *,
        batch_size: int | None = None,
        monitor: str = "loss",
        mode: str = "auto",
        min_delta: float = 0.0,
        early_stopping: int | None = None,
        export: bool = True,
        directory: str | os.PathLike | None = None,
        log_dir: str | os.PathLike | None = None,
        fits: int = 1,
        timeout: float = 300.0,
    ):
        """Checks the arguments; nothing is read before `start`.

        Args:
          model: compiled, made by the same code as the model that is trained; built or not.
          data: what `keras.Model.evaluate` takes as `x`; or a tuple (x, y) or (x, y,
            sample_weight), as `validation_data` of `fit`; or a `dataset_fn`, of which this is the
            only worker.
          snapshots: the folder, or the `Snapshots` that the Trainer was given.
          steps: batches in an evaluation; None for all of them.
          max_evaluations: after how many evaluations `start` returns, if the job has not ended by
            then; None for any number.
          callbacks: of Keras, for `keras.Model.evaluate`.
          batch_size: of arrays, as in Keras.
          monitor: the name of the loss or metric by which the best is found.
          mode: "min", "max", or "auto" for what Keras knows of the metric.
          min_delta: by how much the best has to be beaten.
          early_stopping: after how many evaluations in succession without a better one the job is
            asked to end its `fit`. The chief sees that at its next snapshot. None for never.
          export: whether the best model is written to `best.keras`, with the optimizer's slots.
            An evaluation then needs memory for the slots, too.
          directory: its own folder; None for the folder `evaluator` among the snapshots.
          log_dir: TensorBoard's folder; None for `board` in `directory`. The x axis is the job's
            batches.
          fits: how many calls of `fit` the job consists of.
          timeout: s after which a job whose folder does not change counts as dead. With
            `Snapshots(every=...)`, that many seconds are added.

        Raises:
          ConfigError: an argument is none of these.
        """
        given = settings.of(snapshots)
        if given is None:
            raise errors.ConfigError("snapshots=None; give the folder of the job's snapshots")
        counts = {"early_stopping": early_stopping, "max_evaluations": max_evaluations}
        for name, count in {**counts, "steps": steps, "fits": fits}.items():
            is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 1
            if not is_count and (count is not None or name == "fits"):
                raise errors.ConfigError(f"{name}={count!r} must be a whole number of at least 1")
        if mode not in ("auto", "min", "max"):
            raise errors.ConfigError(f'mode={mode!r} must be "auto", "min" or "max"')
        if not 0 <= timeout < math.inf:
            raise errors.ConfigError(f"timeout={timeout!r} must be a number of seconds")
        _keras_models.check_compiled(model, "evaluate")
        self.model = model
        self._data = _unpacked(data)
        self._folder = Folder(given.directory)
        self._steps, self._most, self._batch_size = steps, max_evaluations, batch_size
        self._callbacks = list(callbacks or ())
        self._exports = export
        self.directory = os.fspath(directory or self._folder.join("evaluator"))
        self._log_dir = os.fspath(log_dir or os.path.join(self.directory, "board"))
        self._judge = Judge(model, monitor, mode, min_delta, early_stopping)
        self._follower = Follower(self._folder, timeout + (given.every or 0.0), fits)
        self._record = Record(os.path.join(self.directory, "evaluations.json"))
        self._filling: Filling | None = None
        self._told = False
        self._recalled = False

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations so far, the oldest first."""
        return list(self._record.evaluations)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation of the best snapshot so far; None before the first."""
        return self._judge.best

    @property
    def best_path(self) -> str:
        """The file of the best model."""
        return os.path.join(self.directory, "best.keras")

    def start(self) -> list[Evaluation]:
        """Follows the job to its end; returns the evaluations of all of it.

        Raises:
          StartupTimeout: no snapshot came within `timeout`.
          ChiefLost: the job has not ended, and took no snapshot within `timeout`.
          ConfigError: the snapshots are of another program's model, the monitored metric is not
            evaluated, or `directory` cannot be written.
        """
        record, made = self._record, 0
        self._judge.reset()
        self._recalled = False
        seen = record.evaluations[-1].snapshot if record.evaluations else None
        # An evaluator may have been killed after it had evaluated the last snapshot.
        is_over = seen is not None and not record.has_ended and self._follower.is_over(seen)
        if is_over:
            self._recall()
        for manifest in () if is_over else self._follower.follow(seen):
            self._begin(manifest.content.get("job", manifest.id.incarnation))
            try:
                self._look_at(manifest)
                made += 1
            except errors.SnapshotDamaged as e:
                self._follower.pass_over(manifest.id, e)
            is_over = self._follower.is_last(manifest)
            if self._most is not None and made >= self._most:
                break
        if is_over:
            self._say_best()
        if self.best is not None and self._exports and tf.io.gfile.exists(self.best_path):
            if not self.model.optimizer.built:  # Nothing was evaluated this time.
                self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(self.best_path)
        if is_over:
            record.end()
        return self.evaluations

    def _begin(self, job: int) -> None:
        if job != self._record.job:
            self._record.begin(job)
            self._judge.reset()

    def _recall(self) -> None:
        """Builds the model, and tells the judge what was evaluated before; once.

        Which way a metric gets better Keras says only once the metric was made.
        """
        if self._recalled:
            return
        self._build()
        for one in self._record.evaluations:
            self._judge.takes(one)
        self._recalled = True

    def _say_best(self) -> None:
        if (best := self.best) is not None:
            exported = f", in {self.best_path}" if self._exports else ""
            value = best.logs[self._judge.monitor]
            _say(
                f"the job has ended; the best {self._judge.monitor} is {value:.6g} of "
                f"{best.snapshot}{exported}"
            )

    def _look_at(self, manifest: Manifest) -> None:
        """Evaluates a snapshot, and does what follows from it."""
        self._recall()
        self._fill(manifest)
        logs = self._evaluated()
        content, chief = manifest.content, chief_of(manifest.content)
        evaluation = Evaluation(
            manifest.id, content["fit"], chief["epoch"], chief["step_number"], logs
        )
        is_best = self._judge.takes(evaluation)
        if is_best and self._exports:
            self._export()
        self._record.add(evaluation)
        self._show(evaluation)
        said = ", ".join(f"{name} {value:.6g}" for name, value in logs.items())
        _say(
            f"{manifest.id} (epoch {evaluation.epoch + 1}, step {evaluation.step}): {said}"
            f"{', the best so far' if is_best else ''}"
        )
        if (reason := self._judge.verdict) and not content["has_ended"]:
            self._ask_to_stop(content["fit"], reason)

    def _fill(self, manifest: Manifest) -> None:
        form = Form(**manifest.content["form"])
        place = of_manifest(self._folder, manifest.id, manifest.content, num_ps=0)
        servers = SavedServers(place, form)
        if self._filling is None:
            self._filling = Filling(self.model)
        left_out = self._filling.fill(servers, optimizer=self._exports)
        if left_out and not self._told:
            self._told = True
            failures.say(f"{manifest.id} is evaluated{left_out}; so are those that follow")

    def _build(self) -> None:
        if not _keras_models.is_built(self.model):
            x, y, weight = self._data
            feed = feed_of(
                x, 1, self._steps, 1, y=y, sample_weight=weight, batch_size=self._batch_size
            )
            _keras_models.build(self.model, feed.batch_spec, targets=True)

    def _evaluated(self) -> dict[str, float]:
        x, y, weight = self._data
        logs = self.model.evaluate(
            x,
            y,
            batch_size=self._batch_size,
            sample_weight=weight,
            steps=self._steps,
            callbacks=self._callbacks,
            verbose=0,
            return_dict=True,
        )
        return {name: float(value) for name, value in logs.items()}

    def _export(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "best.keras")
            self.model.save(path)
            with open(path, "rb") as f:
                write(self.best_path, f.read())

    def _show(self, evaluation: Evaluation) -> None:
        """Writes the loss and the metrics for TensorBoard."""
        writer = tf.summary.create_file_writer(self._log_dir)
        with writer.as_default(step=evaluation.step), tf.summary.record_if(True):
            for name, value in evaluation.logs.items():
                tf.summary.scalar(f"evaluation_{name}", value)
        writer.close()

    def _ask_to_stop(self, fit: int, reason: str) -> None:
        if self._folder.stop_reason(self._record.job, fit) is not None:
            return
        try:
            self._folder.ask_to_stop(self._record.job, fit, reason)
        except FILE_ERRORS as e:
            _say(f"the job cannot be asked to end ({errors.summary(str(e))}); it goes on")
            return
        _say(f"asks the job to end: {reason}")


def _unpacked(data: Any) -> tuple[Any, Any, Any]:
    """(x, y, sample_weight) of what the user gave.

    Raises:
      ConfigError: there is no input, or one that only the workers of a job can read.
    """
    if data is None:
        raise errors.ConfigError("data=None; give what keras.Model.evaluate takes")
    if isinstance(data, Splits):
        raise errors.ConfigError(
            "data is Splits, which the workers of a job share; give a dataset or arrays"
        )
    if inspect.isgenerator(data):
        raise errors.ConfigError(
            "data is a generator, which can be read only once; give a keras.utils.PyDataset, a "
            "tf.data.Dataset or arrays"
        )
    if is_read_by_workers(data):
        return data(Context(0, 1)), None, None
    if isinstance(data, tuple):
        return _keras_models.unpack_batch(data)
    return data, None, None


def _say(line: str) -> None:
    failures.say(line, "evaluator")
