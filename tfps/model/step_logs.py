"""What a step of the user's own returns, and what becomes of it where there are many workers.

An entry of the logs that is computed from nothing but metrics is the same function of the metrics'
totals over all workers: the chief computes it. Any other entry says something about one batch: the
logs have that of the last batch.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
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
            raise errors.ConfigError(_other_logs(logs, self._structure))
        return [_entry(leaves[i]) for i in self._extras]

    def result(
        self, metrics: Sequence[tf.Tensor], extras: Sequence[Any], results: dict[str, Any]
    ) -> dict[str, Any]:
        """The logs, of all workers.

        Args:
          metrics: the totals of the metric variables, tensors.
          extras: the entries that are of one batch.
          results: what the model's metrics are.
        """
        del results
        leaves = list(self._constants)
        if self._function is not None:
            computed = self._function(*(metrics[k] for k in self._fed))
            for i, value in zip(self._results, computed, strict=True):
                leaves[i] = value
        for i, value in zip(self._extras, extras, strict=True):
            leaves[i] = value
        return tf.nest.pack_sequence_as(self._structure, leaves)


class EagerStepLogs:
    """`StepLogs` of a step that is not traced: an entry is known by its name and value.

    An entry that has the name and the value of a metric's result is that result; any other is about
    one batch.

    Attributes:
      of_batch: see `StepLogs`.
    """

    def __init__(self, logs: dict[str, Any], results: dict[str, Any]):
        """Sorts the entries.

        Args:
          logs: what the step returned.
          results: the metrics' results after the step.
        """
        self._structure, self.names, entries = logs, set(logs), _flat(logs)
        self._entries = sorted(entries)
        known = _flat(results)
        self._extras = [
            name
            for name in self._entries
            if name not in known or not _is_same(entries[name], known[name])
        ]
        self.of_batch = [_entry(tf.convert_to_tensor(entries[n])) for n in self._extras]

    def extras(self, logs: dict[str, Any]) -> list[tf.Tensor]:
        """See `StepLogs`.

        Raises:
          ConfigError: the step returns other entries than before.
        """
        entries = _flat(logs)
        if sorted(entries) != self._entries:
            raise errors.ConfigError(_other_logs(entries, self._entries))
        return [_entry(tf.convert_to_tensor(entries[n])) for n in self._extras]

    def result(
        self, metrics: Sequence[tf.Tensor], extras: Sequence[Any], results: dict[str, Any]
    ) -> dict[str, Any]:
        """See `StepLogs`."""
        del metrics
        return _filled(self._structure, {**results, **dict(zip(self._extras, extras, strict=True))})


def _flat(logs: dict[str, Any]) -> dict[str, Any]:
    """Logs without dicts in them: Keras logs the entries of such a dict by their own names."""
    flat = {}
    for name, value in logs.items():
        flat.update(_flat(value) if isinstance(value, dict) else {name: value})
    return flat


def _is_same(entry: Any, result: Any) -> bool:
    one, other = (_entry(tf.convert_to_tensor(t)).numpy() for t in (entry, result))
    return one.shape == other.shape and np.allclose(one, other, 1e-6, 0.0, equal_nan=True)


def _filled(structure: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Logs of this structure with other values of the entries."""
    return {
        name: _filled(old, values) if isinstance(old, dict) else values[name]
        for name, old in structure.items()
    }


def _other_logs(logs: dict[str, Any], before: Any) -> str:
    return (
        f"the step returned the logs {sorted(logs)}, but {sorted(before)} when it first ran; let "
        "it return the same entries always"
    )


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


# The logs of a step, traced or not.
Logs: TypeAlias = StepLogs | EagerStepLogs
