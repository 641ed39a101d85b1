"""What a step does with the variables, found by running it once instead of tracing it.

Code that is written for eager tensors (`numpy()`, Python's own conditions) cannot be traced. So for
a model that runs eagerly the step runs once on a batch, without effect.
"""

from typing import Any

import tensorflow as tf

from tfps import errors
from tfps.model.inspection import Inspection, count_candidates, require_trainable
from tfps.model.own_inspection import Findings
from tfps.model.own_step import own_method, recording
from tfps.model.stateless_model import StatelessModel
from tfps.model.step_logs import EagerStepLogs

_NUMBER = 0


def inspect_eagerly(model: StatelessModel, batch: Any, mode: str) -> Inspection:
    """Finds what a step would do with the variables; no variable is a table.

    Args:
      model: a model that was compiled to run eagerly.
      batch: of the input.
      mode: the step: "train", "test" or "predict".

    Raises:
      ConfigError: the chief does not hold all variables.
      ValueError: no variable has a gradient, as in Keras.
    """
    variables = [*model.trainable, *model.state]
    for variable in variables:
        if not isinstance(variable.value, tf.Variable):
            raise errors.ConfigError(
                f"run_eagerly=True computes on the chief, but {variable.path} "
                f"{tuple(variable.shape)} is too large for it (max_chief_bytes); compile without it"
            )
    none = [False] * len(model.trainable)
    trainable = [tf.convert_to_tensor(v.value) for v in model.trainable]
    state = [tf.convert_to_tensor(v.value) for v in model.state]
    number, scale = tf.constant(_NUMBER, tf.int64), tf.constant(1.0)
    if mode != "train":
        with model.scope(trainable, state, model.initial_metrics(), number):
            model.dry_run(mode, batch, trainable, state)
        return Inspection(none, [False] * len(model.state), none, model.found_unlisted())
    model.counts = count_candidates(model)
    counts = [tf.convert_to_tensor(v.value) for v in model.counts]
    if not own_method(model.model, "train"):
        metrics = model.initial_metrics()
        trained = model.differentiate(
            trainable, state, metrics, number, scale, batch, trainable, counts
        )
        model.counts = model.counts_read()
        connected = [g is not None for g in trained.gradients]
        require_trainable(model, connected)
        updated = [new is not None for new in trained.state]
        assigned = model.assigned_trainable()
        return Inspection(connected, updated, none, model.found_unlisted(), assigned=assigned)

    stand_ins = list(zip(variables, [*trainable, *state], strict=True))
    with (
        model.scope(trainable, state, _metrics(model), number, counts) as scope,
        recording(stand_ins, scale) as recorder,
    ):
        logs = model.own_step("train", batch)
        results = model.model.get_metrics_result()
    findings = Findings(model, scope, recorder, stand_ins)
    findings.tell(model, EagerStepLogs(logs, results))
    return findings.inspection()


def inspect_test_eagerly(model: StatelessModel, batch: Any) -> EagerStepLogs | None:
    """Finds what becomes of the logs of an own `test_step`; None if they are the metrics'.

    Args:
      model: a model that was compiled to run eagerly.
      batch: of the input.
    """
    if own_method(model.model, "test") is None:
        return None
    trainable = [tf.convert_to_tensor(v.value) for v in model.trainable]
    state = [tf.convert_to_tensor(v.value) for v in model.state]
    number = tf.constant(_NUMBER, tf.int64)
    with model.scope(trainable, state, _metrics(model), number):
        logs = model.own_step("test", batch)
        results = model.model.get_metrics_result()
    return EagerStepLogs(logs, results)


def _metrics(model: StatelessModel) -> list[tf.Tensor]:
    """Values of the metric variables as if batches had been seen, and different ones.

    With fresh metrics, the mean over batches would be the value of the first batch.
    """
    fresh = enumerate(model.initial_metrics(), 1)
    return [t + tf.cast(k**0.7 / 3, t.dtype) if t.dtype.is_floating else t for k, t in fresh]
