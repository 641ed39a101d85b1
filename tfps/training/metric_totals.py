"""The model's metrics over what all workers report."""

from collections.abc import Collection

import numpy as np
import tensorflow as tf

from tfps import _keras_metrics
from tfps.model.metric_merging import MetricMerging
from tfps.model.stateless_model import StatelessModel
from tfps.model.step_logs import Logs
from tfps.worker.tally import Report, Tally, sum_of


class MetricTotals:
    """Puts the reports of an epoch, or of an evaluation, together.

    Where every metric variable is a sum, the changes that workers report are added, in whatever
    order they come. Otherwise a worker reports the values that it carries through the epoch, and
    the last values of all workers are merged, or there is one state that all workers update.

    Attributes:
      tally: the sum of the tallies.
      shared: that state; None if there is none. See `OwnState`.
      start: per metric variable, its value before the first batch, an array of its dtype.
    """

    def __init__(self, program: StatelessModel, merging: MetricMerging, logs: Logs | None = None):
        """Starts with the metrics as `reset_metrics` leaves them.

        Args:
          program: the model.
          merging: how the metrics of several workers are put together.
          logs: of the steps, or None if their logs are what the metrics are.
        """
        program.model.reset_metrics()
        self._program, self._merging, self._logs = program, merging, logs
        self.start = [v.numpy() for v in program.metrics]
        self._totals = [s.astype(np.float64) for s in self.start]
        self.shared: list[tf.Tensor] | None = None
        self._latest: dict[
            int, list[np.ndarray]
        ] = {}  # worker -> its values; below 0: of nobody any more
        self._extras = [np.zeros(spec.shape) for spec in logs.of_batch] if logs else []
        self.tally = Tally()

    @property
    def carried(self) -> list[np.ndarray]:
        """What workers begin to carry through the epoch; nothing where every call starts afresh."""
        return [] if self._merging.additive else self.start

    def carried_by(self, worker: int) -> list[np.ndarray]:
        """What one worker goes on to carry; see `carried`."""
        pairs = zip(self._latest.get(worker, self.carried), self.carried, strict=True)
        return [np.asarray(now).astype(start.dtype) for now, start in pairs]

    def state(self) -> tuple[list[np.ndarray], dict[int, list[np.ndarray]], list[np.ndarray]]:
        """What `restore` takes."""
        latest = dict(self._latest) if self.shared is None else {0: self._values()}
        return [*self._totals], latest, [*self._extras]

    def restore(
        self,
        tally: Tally,
        totals: list[np.ndarray],
        latest: dict[int, list[np.ndarray]],
        extras: list[np.ndarray],
        living: Collection[int],
    ) -> None:
        """Goes on with the totals of an epoch that was cut.

        Args:
          tally: see the attribute.
          totals, latest, extras: of `state`.
          living: the workers that go on. What others had reported stays in the totals; one that
            returns begins with nothing.
        """
        self.tally = tally
        self._totals, self._extras = [*totals], [*extras]
        self._latest = dict(latest)
        if self._program.model.run_eagerly:
            return  # There is one state, of no worker.
        for worker in sorted(latest):
            if worker >= 0 and worker not in living:
                self.retire(worker)

    @property
    def examples(self) -> int:
        """The number of examples in the batches."""
        return int(self.tally.examples)

    def add(self, report: Report) -> None:
        """Adds what a call on a worker reports."""
        self.tally = sum_of(self.tally, report.tally)
        if not report.metrics:
            return  # A push by itself, or a call that found no batch.
        n = len(self._totals)
        metrics, extras = report.metrics[:n], report.metrics[n:]
        if self._merging.additive:
            self._totals = [t + c for t, c in zip(self._totals, metrics, strict=True)]
        else:
            self._latest[report.worker] = metrics
        self._extras = extras

    def retire(self, worker: int) -> None:
        """Notes that a worker will not go on with the metrics that it carries."""
        if worker in self._latest:
            self._latest[min([0, *self._latest]) - 1] = self._latest.pop(worker)

    def logs(self, final: bool = False) -> dict[str, float]:
        """The logs of all workers: name -> value.

        They are what `keras.Model.get_metrics_result` gives, or what an own step returns; see
        `StepLogs`.

        Args:
          final: whether the epoch, or the evaluation, is over. The metrics then take the place of
            what an own step returned under just their names, as in Keras.
        """
        totals = self._values()
        results = self._program.results.publish(totals)
        if self._logs is None or (final and self._logs.names == set(results)):
            return _keras_metrics.to_floats(results)
        metrics = self._program.results.cast(totals)
        return _keras_metrics.to_floats(self._logs.result(metrics, self._extras, results))

    def _values(self) -> list[np.ndarray]:
        """The metric variables' values over all workers."""
        if self.shared is not None:
            return [t.numpy() for t in self.shared]
        if self._latest:
            return self._merging.merge(self.start, [m for _, m in sorted(self._latest.items())])
        return self._totals
