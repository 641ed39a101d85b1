"""What a step of the user's own returns, and what becomes of it where there are many workers.

An entry of the logs that is computed from nothing but metrics is the same function of the metrics'
totals over all workers: the chief computes it. Any other entry says something about one batch: the
logs have that of the last batch.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfps import errors


class StepLogs:
    """The logs of one kind of step.

    Attributes:
      of_batch: specs of the entries that are of one batch, float64, in the order of `extras`.
    """

    def __init__(
        self,
        logs: dict[str, Any],
        metrics: Sequence[tf.Tensor],
        inputs: Sequence[tf.Tensor],
    ):
        """Sorts the entries; to be called in the graph in which the step was traced.

        Args:
          logs: what the step returned.
          metrics: the values of the metric variables after the step.
          inputs: the tensors of which the step was computed.
        """
        self._structure = logs
        leaves = tf.nest.flatten(logs)
        self._constants = [None if tf.is_tensor(leaf) else leaf for leaf in leaves]
        tensors = {i: leaf for i, leaf in enumerate(leaves) if tf.is_tensor(leaf)}
        # Two variables that were assigned the same tensor cannot be told apart.
        ids = [id(m) for m in metrics]
        self._fed = [k for k, one in enumerate(ids) if ids.count(one) == 1]
        self._feeds = [metrics[k] for k in self._fed]
        known, unknown = {id(t) for t in self._feeds}, {id(t) for t in inputs} - set(ids)
        unknown |= {one for one in ids if ids.count(one) > 1}
        self._results = {i: t for i, t in tensors.items() if _follows(t, known, unknown)}
        self._extras = [i for i in tensors if i not in self._results]
        self.of_batch = [tf.TensorSpec(_entry(tensors[i]).shape, tf.float64) for i in self._extras]
        self._function: Any = None

    @property
    def names(self) -> set[str]:
        """The names of the entries."""
        return set(self._structure)

    def extract(self, wrapped: Any) -> None:
        """Cuts what computes results of metrics out of the graph.

        Args:
          wrapped: the function of `tf.compat.v1.wrap_function` in whose graph the step was traced.
        """
        if self._results:
            self._function = wrapped.prune(self._feeds, list(self._results.values()))

    def extras(self, logs: dict[str, Any]) -> list[tf.Tensor]:
        """The entries that are of one batch, float64 tensors; in the graph of a step.

        Raises:
          ConfigError: the step returns other entries than when it was first traced.
        """
        if not self._extras:
            return []
        leaves = tf.nest.flatten(logs)
        if len(leaves) != len(self._constants):
            raise errors.ConfigError(
                f"the step returned the logs {sorted(logs)}, but {sorted(self._structure)} when it "
                "was first traced; let it return the same entries always"
            )
        return [_entry(leaves[i]) for i in self._extras]

    def result(self, metrics: Sequence[tf.Tensor], extras: Sequence[Any]) -> dict[str, Any]:
        """The logs, of all workers.

        Args:
          metrics: the totals of the metric variables, tensors.
          extras: the entries that are of one batch.
        """
        leaves = list(self._constants)
        if self._function is not None:
            computed = self._function(*(metrics[k] for k in self._fed))
            for i, value in zip(self._results, computed, strict=True):
                leaves[i] = value
        for i, value in zip(self._extras, extras, strict=True):
            leaves[i] = value
        return tf.nest.pack_sequence_as(self._structure, leaves)


def _entry(tensor: tf.Tensor) -> tf.Tensor:
    """An entry of the logs as it is reported: a mean, if its shape depends on the batch."""
    tensor = tf.cast(tensor, tf.float64)
    return tensor if tensor.shape.is_fully_defined() else tf.reduce_mean(tensor)


def _follows(tensor: tf.Tensor, known: set[int], unknown: set[int]) -> bool:
    """Whether a tensor of a graph is computed from known tensors and constants alone.

    Args:
      tensor: the tensor.
      known: `id`s of the tensors behind which it is not asked any further.
      unknown: `id`s of the tensors from which it must not be computed.
    """
    todo, seen = [tensor], set()
    while todo:
        t = todo.pop()
        if id(t) in known or id(t) in seen:
            continue
        seen.add(id(t))
        random = t.op.op_def is not None and t.op.op_def.is_stateful and "Random" in t.op.type
        if id(t) in unknown or random or t.op.type in ("PyFunc", "EagerPyFunc"):
            return False
        todo += list(t.op.inputs)
    return True
