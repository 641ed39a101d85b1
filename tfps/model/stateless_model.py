"""A compiled Keras model as pure functions of tensors.

Nothing here knows of servers: weights, state, metrics and random seeds come in as tensors and go
out as tensors, so that the same function runs on any worker, whichever servers the weights came
from.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfps import _keras_metrics, _keras_models
from tfps.model.batches import length, without_optionals
from tfps.model.lookups import Rows, reading_rows
from tfps.model.model_variables import ModelVariables
from tfps.model.own_step import NotingScope, fitting, own_logs, own_method, recording
from tfps.model.step_logs import Logs


class Trained(NamedTuple):
    """What one step of training computes.

    Attributes:
      gradients: per trainable variable, the gradient of the scaled loss, or None if the loss does
        not depend on the variable. The gradient of a table has the shape of the rows; those of a
        row that the batch looks up several times are summed.
      state: per state variable, the new value, or None if the model did not touch the variable.
      metrics: the new values of the metric variables, then the logs that are of this batch, then
        the new values of the unlisted variables.
      examples: int64 scalar, the length of the batch.
      assigned: per trainable variable, the value that the step assigns to it before the optimizer
        updates it, or None.
    """

    gradients: list[tf.Tensor | None]
    state: list[tf.Tensor | None]
    metrics: list[tf.Tensor]
    examples: tf.Tensor
    assigned: Sequence[tf.Tensor | None]


class StatelessModel(ModelVariables):
    """The forward pass, loss, gradients and metrics of one model.

    `train`, `evaluate` and `predict` are the steps. They are made of `scope`, in which the model's
    variables have given values, and of `loss`, which runs the model within a scope.

    A model that overrides `train_step`, `test_step`, `predict_step` or `compute_metrics` does the
    step in its own way; see `own_step.py`. What its step does with the variables is known when the
    step has been inspected (`own_inspection.py`), which calls `adopt`.

    For the attributes see `ModelVariables`.
    """

    # The steps.

    def train(
        self,
        trainable: Sequence[tf.Tensor | Rows],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        step: tf.Tensor,
        loss_scale: tf.Tensor,
        batch: Any,
        counts: Sequence[tf.Tensor] = (),
    ) -> Trained:
        """Computes the gradients of one batch.

        Args:
          trainable: tensors in the order of the attribute; for a table, `Rows`.
          state: tensors in the order of the attribute.
          metrics: in the order of the attribute, then those of `initial_metrics`, then the values
            of the unlisted variables.
          step: int64 scalar, unique to this step: the seed of its dropout.
          loss_scale: float32 scalar by which the loss is multiplied.
          batch: what the dataset yields: x, (x, y) or (x, y, sample_weight), or whatever an own
            `train_step` takes.
          counts: integer scalars in the order of the attribute.
        """
        sources = [t.values if isinstance(t, Rows) else t for t in trainable]
        with reading_rows(self.trainable, trainable) as whole:
            if own_method(self.model, "train"):
                trained = self._train_own_way(
                    whole, state, metrics, step, loss_scale, batch, sources, counts
                )
            else:
                trained = self.differentiate(
                    whole, state, metrics, step, loss_scale, batch, sources, counts
                )
        # The gradient of rows is a `tf.IndexedSlices`; the conversion sums slices of one row.
        dense = [None if g is None else tf.convert_to_tensor(g) for g in trained.gradients]
        return trained._replace(gradients=dense)

    def differentiate(
        self,
        trainable: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        step: tf.Tensor,
        loss_scale: tf.Tensor,
        batch: Any,
        sources: Sequence[tf.Tensor],
        counts: Sequence[tf.Tensor] = (),
    ) -> Trained:
        """`train` with gradients for any tensors of which the loss is computed.

        Args:
          trainable, state, metrics, step, loss_scale, batch, counts: see `train`.
          sources: the tensors for which gradients are returned.
        """
        overwritten = self.overwritten
        watched = [*sources, *(state[i] for i in overwritten)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            with self.scope(trainable, state, metrics, step, counts) as scope:
                loss = self.loss(batch, training=True, metrics_in=scope)
            scaled = loss * tf.cast(loss_scale, loss.dtype)
        gradients = tape.gradient(scaled, watched)
        updates = self.updates_in(scope, state)
        for i, value in zip(overwritten, gradients[len(sources) :], strict=True):
            updates[i] = updates[i] if value is None else value
        assigned, values = self.assigned_in(scope, trainable), self.values_in(scope)
        return Trained(gradients[: len(sources)], updates, values, length(batch), assigned)

    def _train_own_way(
        self, trainable, state, metrics, step, loss_scale, batch, sources, counts
    ) -> Trained:
        """What the model's `train_step` computes; `sources` as for `differentiate`."""
        with (
            self.scope(trainable, state, metrics, step, counts) as scope,
            recording(self.pairs(sources, state), loss_scale) as recorder,
        ):
            logs = self.own_step("train", batch)
        applied = recorder.gradients(self.trainable, mean=bool(self.calls))
        gradients = [
            fitting(g, source, v)
            for g, source, v in zip(applied, sources, self.trainable, strict=True)
        ]
        updates = self.updates_in(scope, state)
        extras = self.logs.extras(logs) if self.logs else []
        assigned, values = self.assigned_in(scope, trainable), self.values_in(scope, extras)
        return Trained(gradients, updates, values, length(batch), assigned)

    def own_step(self, mode: str, batch: Any) -> dict[str, Any]:
        """Runs the model's method for a step, within `scope`.

        Args:
          mode: "train", within `own_step.recording`, or "test".
          batch: what the dataset yields.

        Returns:
          The logs.
        """
        method = f"{mode}_step"
        returned = getattr(self.model, method)(without_optionals(batch))
        return own_logs(returned, method, self.model)

    def evaluate(
        self,
        trainable: Sequence[tf.Tensor | Rows],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        step: tf.Tensor,
        batch: Any,
        logs: Logs | None = None,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Computes the metrics of one batch.

        Args:
          trainable, state, metrics, step, batch: see `train`.
          logs: of an own `test_step`.

        Returns:
          (new values of `metrics`, int64 number of examples).
        """
        with (
            reading_rows(self.trainable, trainable) as whole,
            self.scope(whole, state, metrics, step) as scope,
        ):
            returned = self.own_step("test", batch)
        extras = logs.extras(returned) if logs else []
        return self.values_in(scope, extras), length(batch)

    def predict(
        self,
        trainable: Sequence[tf.Tensor | Rows],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        step: tf.Tensor,
        batch: Any,
    ) -> tuple[Any, list[tf.Tensor]]:
        """Computes the model's outputs for one batch.

        Args:
          trainable, state, metrics, step, batch: see `train`.

        Returns:
          (outputs, new values of `metrics`).
        """
        with (
            reading_rows(self.trainable, trainable) as whole,
            self.scope(whole, state, metrics, step) as scope,
        ):
            outputs = self.model.predict_step(without_optionals(batch))
        return outputs, self.values_in(scope)

    # What the steps are made of.

    def dry_run(
        self,
        mode: str,
        batch: Any,
        trainable: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
    ) -> None:
        """Runs a step for what it looks up, within `scope`.

        Args:
          mode: "train", "test" or "predict".
          batch: see `train`.
          trainable, state: of the scope.
        """
        if mode == "train" and own_method(self.model, mode):
            with recording(self.pairs(trainable, state), tf.constant(1.0)):
                self.own_step(mode, batch)
        elif mode == "train":
            self.loss(batch, training=True)
        elif mode == "test":
            self.own_step(mode, batch)
        else:
            self.model.predict_step(without_optionals(batch))

    def loss(self, batch: Any, training: bool, metrics_in: NotingScope | None = None) -> tf.Tensor:
        """The loss of a batch, a scalar, within `scope`.

        Args:
          batch: see `train`.
          training: whether layers run in training mode.
          metrics_in: the scope, in which the batch updates the metrics; None for no metrics.
        """
        x, y, sample_weight = _keras_models.unpack_batch(without_optionals(batch))
        y_pred = _keras_models.call(self.model, x, training)
        loss = _keras_models.compute_loss(self.model, x, y, y_pred, sample_weight, training)
        if metrics_in is not None:
            for count in self.counts:  # Keras applies the gradients before.
                metrics_in.count(count)
            _keras_metrics.add_metrics(self.model, loss, x, y, y_pred, sample_weight)
        return loss
