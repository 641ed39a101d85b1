"""The results of a model's metrics, of values that workers have computed."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras_optimizers, _keras_variables, _tf_functions


class MetricResults:
    """Computes on the chief what the model's metrics are."""

    def __init__(self, model: keras.Model, variables: Sequence[keras.Variable]):
        """Traces nothing yet.

        Args:
          model: compiled.
          variables: of its metrics.
        """
        self._model, self._variables = model, list(variables)
        self._publish: _tf_functions.FlatFunction | None = None  # The graph of `publish`.
        self._read: list[keras.Variable] = []  # What it reads that may be on the servers.

    def publish(self, metrics: Sequence[np.ndarray]) -> dict[str, Any]:
        """Sets the metric variables, and returns the model's metric results.

        It runs as a graph, as in Keras: op by op it would take the chief milliseconds. All numbers
        go in as one tensor, and come out as one.

        Args:
          metrics: per variable, its value.

        Returns:
          Metric name -> float, or a tensor if the result is no scalar; nested as the metrics are.
        """
        row = np.concatenate([np.zeros(0), *(np.ravel(m) for m in metrics)])
        if self._model.run_eagerly:
            scalars, others = self._published(tf.constant(row))
        else:
            if self._publish is None:
                publish = tf.function(self._published, autograph=False)
                graph = publish.get_concrete_function(tf.TensorSpec(row.shape, tf.float64))
                self._publish = _tf_functions.FlatFunction(graph)
                self._read = _keras_variables.captured_by(graph, self._others())
            for variable in self._read:
                _ = variable.value  # It is brought now, for the graph does not ask.
            scalars, others = self._publish.packed(self._publish([tf.constant(row)]))
        numbers = iter(scalars.numpy().tolist())
        return tf.nest.map_structure(lambda t: next(numbers) if t is None else t, others)

    def _others(self) -> list[keras.Variable]:
        """The variables beside the metrics' own that a result may be computed of."""
        optimizers = _keras_optimizers.optimizers_of(self._model)
        settings = [v for one in optimizers for v in _keras_optimizers.settings_of(one)]
        return [*self._model.weights, *settings]

    def cast(self, metrics: Sequence[np.ndarray]) -> list[tf.Tensor]:
        """Values of the metric variables as tensors of the variables' dtypes."""
        pairs = zip(metrics, self._variables, strict=True)
        return [tf.constant(np.asarray(m).astype(v.dtype), v.dtype) for m, v in pairs]

    def _published(self, row):
        """Returns (float64 [n], the scalar results; all results with None for each of these)."""
        sizes = [math.prod(v.shape) for v in self._variables]
        parts = tf.split(row, sizes) if sizes else []
        for variable, part in zip(self._variables, parts, strict=True):
            variable.assign(tf.cast(tf.reshape(part, variable.shape), variable.dtype))
        results = tf.nest.map_structure(tf.convert_to_tensor, self._model.get_metrics_result())

        def is_number(t):
            return t.shape.rank == 0 and (t.dtype.is_floating or t.dtype.is_integer)

        flat = [tf.cast(t, tf.float64) for t in tf.nest.flatten(results) if is_number(t)]
        others = tf.nest.map_structure(lambda t: None if is_number(t) else t, results)
        return tf.stack(flat) if flat else tf.zeros([0], tf.float64), others
