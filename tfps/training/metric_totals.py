"""The model's metrics over what all workers report."""

import numpy as np

from tfps import _keras
from tfps.model.stateless_model import StatelessModel
from tfps.worker.tally import Report, Tally, sum_of


class MetricTotals:
    """Adds up the reports of an epoch, or of an evaluation.

    Keras declares metric variables as sums over replicas. So the changes that workers report are
    added, in whatever order they come.

    Attributes:
      tally: the sum of the tallies.
    """

    def __init__(self, program: StatelessModel):
        """Starts with the metrics as `reset_metrics` leaves them."""
        program.model.reset_metrics()
        self._program = program
        self._totals = [np.asarray(v.numpy(), np.float64) for v in program.metrics]
        self.tally = Tally()

    @property
    def examples(self) -> int:
        """The number of examples in the batches."""
        return int(self.tally.examples)

    def add(self, report: Report) -> None:
        """Adds what a call on a worker reports."""
        self.tally = sum_of(self.tally, report.tally)
        self._totals = [t + c for t, c in zip(self._totals, report.metrics, strict=True)]

    def logs(self) -> dict[str, float]:
        """Metric name -> value, as `keras.Model.get_metrics_result` gives them."""
        return _keras.to_floats(self._program.publish(self._totals))
