"""A compiled Keras model as pure functions of tensors.

Nothing here knows of servers: weights, state, metrics and random seeds come in as tensors and go
out as tensors, so that the same function runs on any worker, whichever servers the weights came
from.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras, _tf
from tfps.model.batches import length, without_optionals
from tfps.model.lookups import Rows, reading_rows
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
    """

    gradients: list[tf.Tensor | None]
    state: list[tf.Tensor | None]
    metrics: list[tf.Tensor]
    examples: tf.Tensor


class StatelessModel:
    """The forward pass, loss, gradients and metrics of one model.

    `train`, `evaluate` and `predict` are the steps. They are made of `scope`, in which the model's
    variables have given values, and of `outputs` and `loss`, which run the model within a scope.

    A model that overrides `train_step`, `test_step`, `predict_step` or `compute_metrics` does the
    step in its own way; see `own_step.py`. What its step does with the variables is known when the
    step has been inspected (`own_inspection.py`), which calls `adopt`.

    Attributes:
      model: the Keras model.
      optimizers: the optimizers that a training step applies gradients with.
      owner: per trainable variable, the index in `optimizers` of the one that updates it, or None.
      trainable: the variables that an optimizer updates: the model's trainable variables, or what
        an own `train_step` applies gradients to.
      state: all other weights of the model: batch-norm statistics, counters, frozen layers.
      metrics: the variables of the compiled metrics and of the mean loss, and those that an own
        `train_step` updates.
      unlisted: variables that the model assigns and does not list among its weights, such as the
        states of a stateful RNN; known after `inspection.inspect`.
      counts: per optimizer whose `iterations` an own `train_step` reads, the variable.
      logs: what an own `train_step` returns, or None if it is what the metrics are.
      base_seeds: the values of all random seeds that the model draws from, int arrays. Each step
        folds its number into them.
    """

    def __init__(self, model: keras.Model):
        """Lists the variables of a built model.

        A model that was compiled to run eagerly is warned of.
        """
        if model.run_eagerly:
            warnings.warn(
                "the model was compiled with run_eagerly=True: its steps run op by op on the "
                "chief, one at a time, and once on a made-up batch before; this is for debugging",
                stacklevel=2,
            )
        self.model = model
        self.optimizers = [model.optimizer] if getattr(model, "optimizer", None) else []
        self.trainable = list(model.trainable_variables)
        self.owner: list[int | None] = [0] * len(self.trainable)
        trainable = {id(v) for v in self.trainable}
        self.state = [v for v in model.weights if id(v) not in trainable]
        self.metrics = list(model.metrics_variables)
        self.unlisted: list[keras.Variable] = []
        self.counts: list[keras.Variable] = []
        self.logs: Logs | None = None
        self._listed = list(self.trainable), list(self.metrics)
        self._compilation = _keras.compilation(model)
        self._seeds = _keras.seed_states(model)
        self.base_seeds = [v.numpy() for v in self._seeds]
        self._assigned: dict[int, keras.Variable] = {}  # In any scope until now, by `id`.
        self._publish: Any = None  # The traced function of `publish`.

    @property
    def seed_ids(self) -> set[int]:
        """The `id`s of the states of all random generators."""
        return {id(v) for v in self._seeds}

    @property
    def optimizer(self) -> keras.optimizers.Optimizer | None:
        """The optimizer of a model that has one optimizer."""
        return self.optimizers[0] if self.optimizers else None

    def adopt(
        self,
        optimizers: Sequence[keras.optimizers.Optimizer],
        trainable: Sequence[keras.Variable],
        owner: Sequence[int | None],
        state: Sequence[keras.Variable],
        metrics: Sequence[keras.Variable],
        counts: Sequence[keras.Variable],
        logs: Logs,
    ) -> None:
        """Takes on what an own `train_step` was found to do; see the attributes of these names."""
        self.optimizers, self.owner = list(optimizers), list(owner)
        self.trainable, self.state = list(trainable), list(state)
        self.metrics, self.counts, self.logs = list(metrics), list(counts), logs
        self._publish = None

    def move_seeds(self) -> None:
        """Moves the model's random generators on, so that who uses them next draws other numbers.

        The steps of this object go by `base_seeds` and their own numbers.
        """
        for seed in self._seeds:
            seed.assign_add([0, 1])

    def is_current(self) -> bool:
        """Whether the model still has these variables, and was not compiled anew."""
        now = self.model.trainable_variables, self.model.metrics_variables
        pairs = zip(now, self._listed, strict=True)
        same = all([id(v) for v in now] == [id(v) for v in then] for now, then in pairs)
        return same and self._compilation == _keras.compilation(self.model)

    def found_unlisted(self) -> list[keras.Variable]:
        """The variables that steps traced until now assign, and that no attribute lists."""
        listed = [*self.trainable, *self.state, *self.metrics, *self._seeds]
        return [v for i, v in self._assigned.items() if i not in set(map(id, listed))]

    def initial_metrics(self, logs: Logs | None = None) -> list[tf.Tensor]:
        """Resets the model's metrics, and returns the values that a step starts with.

        Args:
          logs: of the step.

        Returns:
          The values of the metric variables, then zeros for the logs that are of one batch.
        """
        self.model.reset_metrics()
        extras = [] if logs is None else logs.of_batch
        values = [tf.constant(v.numpy()) for v in self.metrics]
        return [*values, *(tf.zeros(spec.shape, spec.dtype) for spec in extras)]

    def result_names(self) -> set[str]:
        """The names of the metrics' results."""
        return set(self.publish([v.numpy() for v in self.metrics]))

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
        if self.model.run_eagerly:
            scalars, others = self._published(tf.constant(row))
        else:
            if self._publish is None:
                publish = tf.function(self._published, autograph=False)
                graph = publish.get_concrete_function(tf.TensorSpec(row.shape, tf.float64))
                self._publish = _tf.FlatFunction(graph)
            scalars, others = self._publish.packed(self._publish([tf.constant(row)]))
        numbers = iter(scalars.numpy().tolist())
        return tf.nest.map_structure(lambda t: next(numbers) if t is None else t, others)

    def cast(self, metrics: Sequence[np.ndarray]) -> list[tf.Tensor]:
        """Values of the metric variables as tensors of the variables' dtypes."""
        pairs = zip(metrics, self.metrics, strict=True)
        return [tf.constant(np.asarray(m).astype(v.dtype), v.dtype) for m, v in pairs]

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
                    whole, state, metrics, step, loss_scale, batch, sources
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
        updates = self._updates_in(scope, state)
        return Trained(gradients, updates, self._values_in(scope), length(batch))

    def _train_own_way(
        self, trainable, state, metrics, step, loss_scale, batch, sources, counts
    ) -> Trained:
        """What the model's `train_step` computes; `sources` as for `differentiate`."""
        with (
            self.scope(trainable, state, metrics, step, counts) as scope,
            recording(self._pairs(sources, state), loss_scale) as recorder,
        ):
            logs = self.own_step("train", batch)
        gradients = [
            fitting(g, source, v)
            for g, source, v in zip(
                recorder.gradients(self.trainable), sources, self.trainable, strict=True
            )
        ]
        updates = self._updates_in(scope, state)
        extras = self.logs.extras(logs) if self.logs else []
        return Trained(gradients, updates, self._values_in(scope, extras), length(batch))

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
        return self._values_in(scope, extras), length(batch)

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
        return outputs, self._values_in(scope)

    # What the steps are made of.

    @contextlib.contextmanager
    def scope(
        self,
        trainable: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        metrics: Sequence[tf.Tensor] | None = None,
        step: tf.Tensor | None = None,
        counts: Sequence[tf.Tensor] = (),
    ) -> Iterator[NotingScope]:
        """A scope in which the model's variables have these values.

        Args:
          trainable, state: tensors in the order of the attributes.
          metrics: see `train`; None if neither metrics nor unlisted variables are used.
          step: int64 scalar from which random generators are seeded, or None for a step that
            draws no numbers.
          counts: integer scalars in the order of the attribute; empty outside of training.
        """
        seeds = self.base_seeds
        if step is not None:
            seeds = [tf.random.fold_in(seed, step) for seed in seeds]
        pairs = [
            *self._pairs(trainable, state),
            *zip(self._seeds, seeds, strict=True),
            *zip(self.counts, counts, strict=False),
        ]
        if metrics is not None:
            unlisted = metrics[len(metrics) - len(self.unlisted) :]
            pairs += zip(self.metrics, metrics[: len(self.metrics)], strict=True)
            pairs += zip(self.unlisted, unlisted, strict=True)
        with _tf.functions_inlined(), NotingScope(pairs, self.seed_ids) as scope:
            yield scope
        self._assigned.update(scope.written)

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
            with recording(self._pairs(trainable, state), tf.constant(1.0)):
                self.own_step(mode, batch)
        elif mode == "train":
            self.loss(batch, training=True)
        elif mode == "test":
            self.own_step(mode, batch)
        else:
            self.model.predict_step(without_optionals(batch))

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

    def _pairs(self, trainable, state) -> list[tuple[keras.Variable, tf.Tensor]]:
        return [*zip(self.trainable, trainable, strict=True), *zip(self.state, state, strict=True)]

    def _values_in(
        self, scope: keras.StatelessScope, extras: Sequence[tf.Tensor] = ()
    ) -> list[tf.Tensor]:
        metrics, unlisted = (
            [scope.get_current_value(v) for v in some] for some in (self.metrics, self.unlisted)
        )
        return [*metrics, *extras, *unlisted]

    def _updates_in(self, scope: keras.StatelessScope, state: Sequence[tf.Tensor]) -> list:
        after = [scope.get_current_value(v) for v in self.state]
        return [None if new is old else new for new, old in zip(after, state, strict=True)]
