"""Variables of the model that are on no server, because every worker has its own values of them.

These are the metric variables, and the variables that the model does not list among its weights,
such as the states of a stateful RNN.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfps.model.stateless_model import StatelessModel
from tfps.model.step_logs import Logs
from tfps.worker.tracing import traced


class Own(NamedTuple):
    """What a worker keeps of these variables from one call to the next: tensors on the worker.

    Attributes:
      metrics: values of the metric variables; empty if every call starts with fresh ones.
      unlisted: values of the variables that the model does not list.
    """

    metrics: list[tf.Tensor]
    unlisted: list[tf.Tensor]


class OwnValues:
    """How a step takes these values in and gives them out.

    Within a step, the values are one list: those of the metric variables, then the logs that are of
    one batch, then the unlisted variables.

    Attributes:
      logs: what a step of the user's own returns, or None if that is what the metrics are.
      specs: the form of what a worker keeps.
      initial: per metric variable, what is subtracted from the value that a call reports. If every
        call starts with fresh metrics, it is the value that the call starts with, and what is left
        is the change. Otherwise it is 0.
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
        self.specs = Own(
            [tf.TensorSpec(t.shape, t.dtype) for t in self._metrics] if carries_metrics else [],
            [tf.TensorSpec(v.shape, v.dtype) for v in program.unlisted],
        )
        start = [np.asarray(t.numpy(), np.float64) for t in fresh]
        self.initial = [np.zeros_like(s) for s in start] if carries_metrics else start

    def begin(self, own: Own) -> list[tf.Tensor]:
        """The values with which a call starts, of what the worker has kept."""
        return [*(own.metrics or self._metrics), *self._logs, *own.unlisted]

    def end(self, values: list[tf.Tensor]) -> Own:
        """What the worker keeps of the values after the last step of a call."""
        metrics = values[: self._count] if self.specs.metrics else []
        return Own(metrics, values[self._reported :])

    def reported(self, values: list[tf.Tensor]) -> list[tf.Tensor]:
        """The values that the call reports: metric variables, and logs that are of one batch."""
        return values[: self._reported]


def placed(metrics: list[np.ndarray], unlisted: list[np.ndarray]) -> Own:
    """Values as tensors on the device in scope."""
    # A constant of a graph is made where the graph runs; one of the chief's would be sent there.
    return traced(lambda: Own(*([tf.constant(a) for a in part] for part in (metrics, unlisted))))()
