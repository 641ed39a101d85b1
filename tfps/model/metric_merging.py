"""The metric variables of a model, and how those of several workers are put together."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfps import _keras_metrics
from tfps.model.combination import Combination, combinations, operations_after
from tfps.model.stateless_model import StatelessModel
from tfps.model.step_logs import Logs

# What Keras calls the way in which a variable's replicas make one. "sum" is the default of metric
# variables, and says nothing.
_DECLARED = {"mean": Combination.MEAN, "only_first_replica": Combination.FIRST}


class MetricMerging:
    """How the states that workers have of a model's metrics make one.

    Attributes:
      additive: whether every variable is a plain sum over batches. A worker may then start each
        call with a fresh state, and what the calls report is added in whatever order they come.
        Otherwise each worker carries its state through the epoch.
    """

    def __init__(self, program: StatelessModel, found: Sequence[Combination], read: bool = False):
        """Combines what the graph shows with what the metrics say of themselves.

        Args:
          program: the model.
          found: per metric variable, what its update looks like; see `combinations`.
          read: whether the step computes anything else with the metrics' state.
        """
        index = {id(v): i for i, v in enumerate(program.metrics)}
        self._names = [v.path for v in program.metrics]
        # (metric that merges states by itself, indices of its variables)
        self._merged = [
            (metric, [index[id(v)] for v in metric.variables])
            for metric in _keras_metrics.metrics_of(program.model)
            if hasattr(metric, "merge_state") and all(id(v) in index for v in metric.variables)
        ]
        declared = [_DECLARED.get(v.aggregation) for v in program.metrics]
        self._how = [d or f for d, f in zip(declared, found, strict=True)]
        sums = all(how is Combination.SUM for how in self._how)
        self.additive = sums and not self._merged and not read

    def warn(self, num_workers: int) -> None:
        """Warns of variables whose states nobody knows how to put together.

        Args:
          num_workers: how many workers there are; one has nothing to put together.
        """
        merged = {i for _, mine in self._merged for i in mine}
        unknown = [
            name
            for i, (name, how) in enumerate(zip(self._names, self._how, strict=True))
            if how is Combination.UNKNOWN and i not in merged
        ]
        if num_workers > 1 and unknown:
            warnings.warn(
                f"The metric state {', '.join(unknown)} is no sum, maximum or minimum over "
                f"batches as far as it can be seen, so what {num_workers} workers have of it is "
                "added up, which may be wrong; give the metric a method merge_state(metrics), or "
                'its variable aggregation="mean" or "only_first_replica"',
                stacklevel=2,
            )

    def merge(self, start: list[np.ndarray], states: list[list[np.ndarray]]) -> list[np.ndarray]:
        """Makes one state of several.

        Args:
          start: per variable, the value with which every worker began, in the variable's shape.
          states: per worker that has seen a batch, in the order of workers, its values.
        """
        if not states:
            return start
        if len(states) == 1:
            return states[0]
        values = [
            _combined(how, first, [state[i] for state in states])
            for i, (how, first) in enumerate(zip(self._how, start, strict=True))
        ]
        for metric, mine in self._merged:
            merged = _keras_metrics.merged(metric, [[state[i] for i in mine] for state in states])
            for i, value in zip(mine, merged, strict=True):
                values[i] = value
        return values


def merging_of(
    program: StatelessModel, batch_spec: Any, train: bool, logs: Logs | None = None
) -> MetricMerging:
    """Finds how the metrics of a model merge.

    Args:
      program: the model.
      batch_spec: nested specs of a batch.
      train: whether the metrics are those of training. Otherwise they are those of evaluation.
      logs: of an own `test_step`. Those of an own `train_step` are the program's.
    """
    if _keras_metrics.has_plain_metrics(program.model):
        # Every state of Keras's own metrics is a sum; a test holds that.
        return MetricMerging(program, [Combination.SUM] * len(program.metrics))
    found: list[MetricMerging] = []

    def trace(trainable, state, metrics, batch):
        n = len(program.metrics)
        others: list[tf.Tensor | None] = []
        step = tf.constant(0, tf.int64)
        if train:
            scale = tf.constant(1.0)
            counts = [tf.zeros([], v.dtype) for v in program.counts]
            trained = program.train(trainable, state, metrics, step, scale, batch, counts)
            after, others = trained.metrics, [*trained.gradients, *trained.state]
        else:
            after, _ = program.evaluate(trainable, state, metrics, step, batch, logs)
        later = operations_after(metrics[:n])
        read = any(t is not None and t.op in later for t in [*others, *after[n:]])
        found.append(MetricMerging(program, combinations(metrics[:n], after[:n]), read))

    def specs(variables):
        return [tf.TensorSpec(v.shape, v.dtype) for v in variables]

    tf.function(trace, autograph=False).get_concrete_function(
        specs(program.trainable),
        specs(program.state),
        specs([*program.metrics, *program.unlisted]),
        batch_spec,
    )
    return found[0]


def untraced(program: StatelessModel) -> MetricMerging:
    """How the metrics of a model that runs eagerly merge: workers carry one state of them."""
    return MetricMerging(program, [Combination.SUM] * len(program.metrics), read=True)


def _combined(how: Combination, start: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    if how is Combination.MAXIMUM:
        return np.max(values, axis=0)
    if how is Combination.MINIMUM:
        return np.min(values, axis=0)
    if how is Combination.MEAN:
        return np.mean(values, axis=0)
    if how is Combination.FIRST:
        return values[0]
    return start + sum(value - start for value in values)
