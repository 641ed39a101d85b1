"""The model's metrics over what all workers report."""

import numpy as np

from tfps import _keras
from tfps.model.stateless_model import StatelessModel
from tfps.model.step_logs import StepLogs
from tfps.worker.tally import Report, Tally, sum_of


class MetricTotals:
    """Adds up the reports of an epoch, or of an evaluation.

    Keras declares metric variables as sums over replicas. So the changes that workers report are
    added, in whatever order they come.

    Attributes:
      tally: the sum of the tallies.
    """

    def __init__(self, program: StatelessModel, logs: StepLogs | None = None):
        """Starts with the metrics as `reset_metrics` leaves them.

        Args:
          program: the model.
          logs: of the steps, or None if their logs are what the metrics are.
        """
        program.model.reset_metrics()
        self._program, self._logs = program, logs
        self._totals = [np.asarray(v.numpy(), np.float64) for v in program.metrics]
        self._extras = [np.zeros(spec.shape) for spec in logs.of_batch] if logs else []
        self.tally = Tally()

    @property
    def examples(self) -> int:
        """The number of examples in the batches."""
        return int(self.tally.examples)

    def add(self, report: Report) -> None:
        """Adds what a call on a worker reports."""
        self.tally = sum_of(self.tally, report.tally)
        n = len(self._totals)
        self._totals = [t + c for t, c in zip(self._totals, report.metrics[:n], strict=True)]
        if report.steps:
            self._extras = report.metrics[n:]

    def logs(self, final: bool = False) -> dict[str, float]:
        """The logs of all workers: name -> value.

        They are what `keras.Model.get_metrics_result` gives, or what an own step returns; see
        `StepLogs`.

        Args:
          final: whether the epoch is over. The metrics then take the place of what an own step
            returned under just their names, as in Keras.
        """
        results = self._program.publish(self._totals)
        if self._logs is None or (final and self._logs.names == set(results)):
            return _keras.to_floats(results)
        return _keras.to_floats(self._logs.result(self._program.cast(self._totals), self._extras))
