"""The metrics of a Keras model, and the logs made of them.

Private names of Keras, as of Keras 3.15.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileMetrics
from keras.src.utils.python_utils import pythonify_logs

from tfps import _keras_models

__all__ = [
    "add_metrics",
    "flatten_metrics",
    "has_plain_metrics",
    "loss_variables",
    "merged",
    "metrics_of",
    "pythonify_logs",
    "to_floats",
]


def add_metrics(
    model: keras.Model, loss: tf.Tensor, x: Any, y: Any, y_pred: Any, sample_weight: Any
) -> None:
    """Updates the mean loss and the compiled metrics with one batch."""
    if model._loss_tracker is not None:
        first = next(t for t in tf.nest.flatten(x) if t is not None)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(first)[0])
    model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def loss_variables(model: keras.Model) -> list[keras.Variable]:
    """The variables of the mean loss that Keras keeps for a compiled model."""
    tracker = getattr(model, "_loss_tracker", None)
    return [] if tracker is None else list(tracker.variables)


def metrics_of(model: keras.Model) -> list[keras.Metric]:
    """The metrics of a built model: the mean loss, those it was compiled with, those of layers."""
    found: list[keras.Metric] = []
    for metric in model.metrics:
        found += metric.metrics if isinstance(metric, CompileMetrics) else [metric]
    return found


def has_plain_metrics(model: keras.Model) -> bool:
    """Whether all metrics are classes of Keras, and nothing but Keras's own steps updates them."""
    own = any(_keras_models.overrides(model, name) for name in _METRIC_METHODS)
    layers = model._flatten_layers(include_self=True)
    tracked = any(isinstance(one, keras.Layer) and one._metrics for one in layers)
    return all(map(_is_of_keras, metrics_of(model))) and not own and not tracked


def _is_of_keras(metric: keras.Metric) -> bool:
    """Whether the metric's class is one of Keras."""
    return type(metric).__module__.startswith("keras.")


_METRIC_METHODS = ("train_step", "test_step", "compute_loss", "compute_metrics", "reset_metrics")


def merged(metric: keras.Metric, states: list[list[Any]]) -> list[Any]:
    """Calls a metric's own `merge_state`, as tf_keras defines it; leaves the metric alone.

    Args:
      metric: has a method `merge_state(metrics)`, which takes metrics of the same class.
      states: several states, each with the value of each of the metric's variables.

    Returns:
      The values of one state, arrays.
    """
    first, *others = [_with_values(metric, values) for values in states]
    first.merge_state(others)
    return [v.numpy() for v in first.variables]


def _with_values(metric: keras.Metric, values: list[Any]) -> keras.Metric:
    """A copy of a metric that shares everything with it but its variables."""
    own = {
        id(v): keras.Variable(np.asarray(value).astype(v.dtype), trainable=False, dtype=v.dtype)
        for v, value in zip(metric.variables, values, strict=True)
    }

    def copied(x: Any) -> Any:
        if id(x) in own:
            return own[id(x)]
        if isinstance(x, keras.Metric):
            # `copy.copy` would write the metric into a file and read it back.
            other = object.__new__(type(x))
            vars(other).update({name: copied(value) for name, value in vars(x).items()})
            return other
        if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
            return (tuple if isinstance(x, tuple) else list)(map(copied, x))
        return {key: copied(value) for key, value in x.items()} if isinstance(x, dict) else x

    return copied(metric)


def to_floats(logs: dict[str, Any]) -> dict[str, float]:
    """Converts the tensors of `get_metrics_result` to Python floats."""
    return pythonify_logs(logs)


def flatten_metrics(model: keras.Model, logs: dict[str, float]) -> float | list[float]:
    """What `keras.Model.evaluate` returns for these logs without `return_dict`."""
    return model._flatten_metrics_in_order(logs)
