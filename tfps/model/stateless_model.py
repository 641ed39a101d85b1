"""A compiled Keras model as pure functions of tensors.

Nothing here knows of servers: weights, state, metrics and random seeds come in as tensors and go
out as tensors, so that the same function runs on any worker, whichever servers the weights came
from.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras, _tf, errors
from tfps.model.lookups import Find, Rows, looking_up


class _NotingScope(keras.StatelessScope):
    """A scope that notes which variables are assigned in it."""

    def __init__(self, pairs: list, assigned: dict[int, keras.Variable]):
        super().__init__(pairs, collect_losses=True)
        self._assigned = assigned

    def add_update(self, update):
        variable, _ = update
        self._assigned[id(variable)] = variable
        super().add_update(update)


class Trained(NamedTuple):
    """What one step of training computes.

    Attributes:
      gradients: per trainable variable, the gradient of the scaled loss, or None if the loss does
        not depend on the variable. The gradient of a table has the shape of the rows; those of a
        row that the batch looks up several times are summed.
      state: per state variable, the new value, or None if the model did not touch the variable.
      metrics: the new values of the metric variables, and then of the unlisted ones.
      examples: int64 scalar, the length of the batch.
    """

    gradients: list[tf.Tensor | None]
    state: list[tf.Tensor | None]
    metrics: list[tf.Tensor]
    examples: tf.Tensor


class StatelessModel:
    """The forward pass, loss, gradients and metrics of one model.

    `train`, `evaluate` and `predict` are the steps. They are made of `scope`, in which the model's
    variables have given values, and of `outputs` and `loss`, which run the model within a scope.

    Attributes:
      model: the Keras model.
      trainable: the model's trainable variables.
      state: all other weights of the model: batch-norm statistics, counters, frozen layers.
      metrics: the variables of the compiled metrics and of the mean loss.
      unlisted: variables that the model assigns and does not list among its weights, such as the
        states of a stateful RNN; known after `inspection.inspect`.
      base_seeds: the values of all random seeds that the model draws from, int arrays. Each step
        folds its number into them.
    """

    def __init__(self, model: keras.Model):
        """Lists the variables of a built model.

        Raises:
          ConfigError: the model overrides `train_step`, `test_step` or `predict_step`, or was
            compiled to run eagerly.
        """
        if overridden := _keras.overridden_steps(model):
            raise errors.ConfigError(
                f"{type(model).__name__} overrides {' and '.join(overridden)}, which tfps cannot "
                "split into pull and push; override compute_loss or compute_metrics instead"
            )
        if model.run_eagerly:
            raise errors.ConfigError(
                "the model was compiled with run_eagerly=True, but steps run as graphs on the "
                "workers; debug with plain Keras, then compile without it"
            )
        self.model = model
        self.trainable = list(model.trainable_variables)
        trainable = {id(v) for v in self.trainable}
        self.state = [v for v in model.weights if id(v) not in trainable]
        self.metrics = list(model.metrics_variables)
        self.unlisted: list[keras.Variable] = []
        self._compilation = _keras.compilation(model)
        self._seeds = _keras.seed_states(model)
        self._assigned: dict[int, keras.Variable] = {}  # In any scope until now, by `id`.
        self.base_seeds = [v.numpy() for v in self._seeds]
        self._publish: Any = None  # The traced function of `publish`.

    def is_current(self) -> bool:
        """Whether the model still has these variables, and was not compiled anew."""
        pairs = (
            (self.model.trainable_variables, self.trainable),
            (self.model.metrics_variables, self.metrics),
        )
        same = all([id(v) for v in now] == [id(v) for v in then] for now, then in pairs)
        return same and self._compilation == _keras.compilation(self.model)

    def found_unlisted(self) -> list[keras.Variable]:
        """The variables that steps traced until now assign, and that no attribute lists."""
        listed = [*self.trainable, *self.state, *self.metrics, *self._seeds]
        return [v for i, v in self._assigned.items() if i not in set(map(id, listed))]

    def initial_metrics(self) -> list[tf.Tensor]:
        """Resets the model's metrics, and returns the values of the metric variables."""
        self.model.reset_metrics()
        return [tf.constant(v.numpy()) for v in self.metrics]

    def publish(self, metrics: Sequence[np.ndarray]) -> dict[str, Any]:
        """Sets the metric variables, and returns the model's metric results.

        It runs as a graph, as in Keras: op by op it would take the chief milliseconds. All numbers
        go in as one tensor, and come out as one.

        Args:
          metrics: values in the order of the attribute.

        Returns:
          Metric name -> float, or a tensor if the result is no scalar; nested as the metrics are.
        """
        row = np.concatenate([np.zeros(0), *(np.ravel(m) for m in metrics)])
        if self._publish is None:
            publish = tf.function(self._published, autograph=False)
            self._publish = publish.get_concrete_function(tf.TensorSpec(row.shape, tf.float64))
        scalars, others = self._publish(tf.constant(row))
        numbers = iter(scalars.numpy().tolist())
        return tf.nest.map_structure(lambda t: next(numbers) if t is None else t, others)

    def _published(self, row):
        """Returns (float64 [n], the scalar results; all results with None for each of these)."""
        sizes = [math.prod(v.shape) for v in self.metrics]
        parts = tf.split(row, sizes) if sizes else []
        for variable, part in zip(self.metrics, parts, strict=True):
            variable.assign(tf.cast(tf.reshape(part, variable.shape), variable.dtype))
        results = tf.nest.map_structure(tf.convert_to_tensor, self.model.get_metrics_result())

        def is_number(t):
            return t.shape.rank == 0 and (t.dtype.is_floating or t.dtype.is_integer)

        flat = [tf.cast(t, tf.float64) for t in tf.nest.flatten(results) if is_number(t)]
        others = tf.nest.map_structure(lambda t: None if is_number(t) else t, results)
        return tf.stack(flat) if flat else tf.zeros([0], tf.float64), others

    # The steps.

    def train(
        self,
        trainable: Sequence[tf.Tensor | Rows],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        step: tf.Tensor,
        loss_scale: tf.Tensor,
        batch: Any,
    ) -> Trained:
        """Computes the gradients of one batch.

        Args:
          trainable: tensors in the order of the attribute; for a table, `Rows`.
          state: tensors in the order of the attribute.
          metrics: values of the metric variables, and then of the unlisted ones.
          step: int64 scalar, unique to this step: the seed of its dropout.
          loss_scale: float32 scalar by which the loss is multiplied.
          batch: what the dataset yields: x, (x, y) or (x, y, sample_weight).
        """
        sources = [t.values if isinstance(t, Rows) else t for t in trainable]
        with self._tables(trainable) as whole:
            trained = self.differentiate(whole, state, metrics, step, loss_scale, batch, sources)
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
    ) -> Trained:
        """`train` with gradients for any tensors of which the loss is computed.

        Args:
          trainable, state, metrics, step, loss_scale, batch: see `train`.
          sources: the tensors for which gradients are returned.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            with self.scope(trainable, state, metrics, step) as scope:
                loss = self.loss(batch, training=True, metrics=True)
            scaled = loss * tf.cast(loss_scale, loss.dtype)
        gradients = tape.gradient(scaled, sources)
        after = [scope.get_current_value(v) for v in self.state]
        updates = [None if new is old else new for new, old in zip(after, state, strict=True)]
        return Trained(gradients, updates, self._metrics_in(scope), _length(batch))

    def evaluate(
        self,
        trainable: Sequence[tf.Tensor | Rows],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        batch: Any,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Computes the metrics of one batch.

        Args:
          trainable, state, metrics, batch: see `train`.

        Returns:
          (new values in the order of `metrics`, int64 number of examples).
        """
        with self._tables(trainable) as whole, self.scope(whole, state, metrics) as scope:
            self.loss(batch, training=False, metrics=True)
        return self._metrics_in(scope), _length(batch)

    def predict(
        self,
        trainable: Sequence[tf.Tensor | Rows],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor],
        batch: Any,
    ) -> tuple[Any, list[tf.Tensor]]:
        """Computes the model's outputs for one batch.

        Args:
          trainable, state, metrics, batch: see `train`.

        Returns:
          (outputs, new values in the order of `metrics`).
        """
        with self._tables(trainable) as whole, self.scope(whole, state, metrics) as scope:
            outputs = self.outputs(batch, training=False)
        return outputs, self._metrics_in(scope)

    # What the steps are made of.

    @contextlib.contextmanager
    def scope(
        self,
        trainable: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor] | None = None,
        step: tf.Tensor | None = None,
    ) -> Iterator[keras.StatelessScope]:
        """A scope in which the model's variables have these values.

        Args:
          trainable, state: tensors in the order of the attributes.
          metrics: values of the metric variables, and then of the unlisted ones; None if neither
            are used.
          step: int64 scalar from which random generators are seeded, or None for a step that
            draws no numbers.
        """
        seeds = self.base_seeds
        if step is not None:
            seeds = [tf.random.fold_in(seed, step) for seed in seeds]
        pairs = [
            *zip(self.trainable, trainable, strict=True),
            *zip(self.state, state, strict=True),
            *zip(self._seeds, seeds, strict=True),
        ]
        if metrics is not None:
            pairs += zip([*self.metrics, *self.unlisted], metrics, strict=True)
        with _NotingScope(pairs, self._assigned) as scope:
            yield scope

    def outputs(self, batch: Any, training: bool) -> Any:
        """The model's outputs, within `scope`."""
        x, _, _ = _keras.unpack_batch(without_optionals(batch))
        return _keras.call(self.model, x, training)

    def loss(self, batch: Any, training: bool, metrics: bool = False) -> tf.Tensor:
        """The loss of a batch, a scalar, within `scope`.

        Args:
          batch: see `train`.
          training: whether layers run in training mode.
          metrics: whether to update the metrics with the batch.
        """
        x, y, sample_weight = _keras.unpack_batch(without_optionals(batch))
        y_pred = _keras.call(self.model, x, training)
        loss = _keras.compute_loss(self.model, x, y, y_pred, sample_weight, training)
        if metrics:
            _keras.add_metrics(self.model, loss, x, y, y_pred, sample_weight)
        return loss

    def _metrics_in(self, scope: keras.StatelessScope) -> list[tf.Tensor]:
        return [scope.get_current_value(v) for v in [*self.metrics, *self.unlisted]]

    @contextlib.contextmanager
    def _tables(self, trainable: Sequence[tf.Tensor | Rows]) -> Iterator[list[tf.Tensor]]:
        """A context in which lookups in tables read the given rows.

        Yields:
          `trainable`, with a stand-in of the table's shape in place of each `Rows`.
        """
        rows = {i: value for i, value in enumerate(trainable) if isinstance(value, Rows)}
        stand_ins = {
            i: tf.fill(v.shape, tf.zeros([], v.dtype))
            for i, v in enumerate(self.trainable)
            if i in rows
        }
        with looking_up(self.trainable, {i: _next_of(value) for i, value in rows.items()}):
            yield [stand_ins.get(i, value) for i, value in enumerate(trainable)]
        for i, value in stand_ins.items():
            if value.consumers():
                raise errors.ConfigError(
                    f"{self.trainable[i].path} is only looked up in training, but used as a whole "
                    "in evaluation or prediction; give it a regularizer or constraint, or use it "
                    "whole in training too"
                )


def without_optionals(batch: Any) -> Any:
    """A batch, or the spec of batches, with None for what is missing.

    Keras's datasets carry a missing target or weight as an empty `tf.experimental.Optional`, and a
    missing input as None, whose spec is one of TensorFlow's own.
    """
    missing = (tf.experimental.Optional, tf.OptionalSpec, _tf.NoneTensorSpec)
    return keras.tree.map_structure(lambda t: None if isinstance(t, missing) else t, batch)


def _next_of(rows: Rows) -> Find:
    """Answers the lookups of one table in the order in which the model makes them."""
    positions = iter(rows.positions)
    return lambda ids: tf.gather(rows.values, next(positions))


def _length(batch: Any) -> tf.Tensor:
    x, _, _ = _keras.unpack_batch(without_optionals(batch))
    first = next(t for t in tf.nest.flatten(x) if t is not None)
    return tf.shape(first, out_type=tf.int64)[0]
