"""Variables of the model that are on no server, because every worker has its own values of them.

These are the metric variables, and the variables that the model does not list among its weights,
such as the states of a stateful RNN.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfps.model.stateless_model import StatelessModel
from tfps.model.step_logs import Logs
from tfps.worker import tally
from tfps.worker.tracing import traced


class Own(NamedTuple):
    """What a worker keeps of these variables from one call to the next: tensors on the worker.

    Attributes:
      metrics: values of the metric variables; empty if every call starts with fresh ones.
      unlisted: values of the variables that the model does not list.
      report: the report of the calls before (`tally.vector`), to which the next call adds its own,
        alone in a list; empty for steps without reports.
    """

    metrics: list[tf.Tensor]
    unlisted: list[tf.Tensor]
    report: list[tf.Tensor]


class OwnValues:
    """How a step takes these values in and gives them out.

    Within a step, the values are one list: those of the metric variables, then the logs that are of
    one batch, then the unlisted variables.

    Attributes:
      logs: what a step of the user's own returns, or None if that is what the metrics are.
      specs: the form of what a worker keeps.
      shapes: of what a call reports of each metric variable, and of logs that are of one batch.
    """

    def __init__(
        self,
        program: StatelessModel,
        carries_metrics: bool = False,
        logs: Logs | None = None,
        has_metrics: bool = True,
    ):
        """Notes the values with which a call starts.

        Args:
          program: the model.
          carries_metrics: whether a worker carries the metric variables from call to call.
          logs: see the attribute.
          has_metrics: whether the step updates metrics, so that the model's are reset. A prediction
            does not.
        """
        if has_metrics:
            fresh = program.initial_metrics(logs)
        else:
            fresh = [tf.zeros(v.shape, v.dtype) for v in program.metrics]
        self.logs = logs
        self._count, self._reported = len(program.metrics), len(fresh)
        # What a call starts with, whatever the worker has kept.
        self._metrics, self._logs = fresh[: self._count], fresh[self._count :]
        self.shapes = [t.shape for t in fresh]
        sizes = [shape.num_elements() for shape in self.shapes]
        # Of metrics that a worker carries, and of logs, the latest value is reported.
        self._latest = sum(sizes if carries_metrics else sizes[self._count :])
        report = tf.TensorSpec([2 + tally.SIZE + sum(sizes)], tf.float64)
        self.specs = Own(
            [tf.TensorSpec(t.shape, t.dtype) for t in self._metrics] if carries_metrics else [],
            [tf.TensorSpec(v.shape, v.dtype) for v in program.unlisted],
            [report] if has_metrics else [],
        )
        self._blank = traced(lambda: tf.zeros(report.shape, report.dtype))

    def blank(self) -> tf.Tensor:
        """A report of nothing, on the device in scope."""
        return self._blank()

    def begin(self, own: Own) -> list[tf.Tensor]:
        """The values with which a call starts, of what the worker has kept."""
        return [*(own.metrics or self._metrics), *self._logs, *own.unlisted]

    def end(self, values: list[tf.Tensor]) -> Own:
        """What the worker keeps of the values after the last step of a call."""
        metrics = values[: self._count] if self.specs.metrics else []
        return Own(metrics, values[self._reported :], [])

    def report(
        self,
        own: Own,
        steps: tf.Tensor,
        total: tf.Tensor,
        values: list[tf.Tensor],
        taken: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """What a call reports, together with the calls before; see `tally.vector`.

        Args:
          own: what the worker has kept.
          steps, total, taken: see `tally.vector`.
          values: after the last step.
        """
        reported = [tf.cast(v, tf.float64) for v in values[: self._reported]]
        if not self.specs.metrics:
            # Calls start with the same values, so the change is what can be added up.
            start = [tf.cast(v, tf.float64) for v in self._metrics]
            changes = [v - s for v, s in zip(reported, start, strict=False)]
            reported = [*changes, *reported[self._count :]]
        return tally.joined(
            own.report[0], tally.vector(steps, total, reported, taken), self._latest
        )


def placed(metrics: list[np.ndarray], unlisted: list[np.ndarray]) -> Own:
    """Values as tensors on the device in scope."""
    # A constant of a graph is made where the graph runs; one of the chief's would be sent there.
    return traced(lambda: Own(_constants(metrics), _constants(unlisted), []))()


def _constants(arrays: list[np.ndarray]) -> list[tf.Tensor]:
    return [tf.constant(a) for a in arrays]
