"""A compiled Keras model as pure functions of tensors.

Nothing here knows of servers: weights, state, metrics and random seeds come in
as tensors and go out as tensors, so that the same function runs on whatever
worker, whichever servers the weights came from.
"""

import keras
import tensorflow as tf

from tfps import _keras, errors


class Program:
    """The forward pass, loss, gradients and metrics of one model.

    Attributes:
      trainable: the model's trainable variables.
      state: its other weights: batch-norm statistics, counters, frozen layers.
      metrics: the variables of the compiled metrics and the loss.
    """

    def __init__(self, model: keras.Model):
        """Reads the variables of a built model.

        Raises:
          ConfigError: the model overrides `train_step`, `test_step` or
            `predict_step`, or is to run eagerly.
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
        self._compilation = _keras.compilation(model)
        self._seeds = _keras.seed_states(model)
        self._base_seeds = [v.numpy() for v in self._seeds]

    def is_current(self) -> bool:
        """Whether the model still has the variables, and was not compiled anew."""
        pairs = (
            (self.model.trainable_variables, self.trainable),
            (self.model.metrics_variables, self.metrics),
        )
        same = all([id(v) for v in now] == [id(v) for v in then] for now, then in pairs)
        return same and self._compilation == _keras.compilation(self.model)

    def initial_metrics(self) -> list[tf.Tensor]:
        """The metric variables' values after `reset_metrics`."""
        self.model.reset_metrics()
        return [tf.constant(v.numpy()) for v in self.metrics]

    def inspect(self, batch_spec) -> tuple[list[bool], list[bool]]:
        """What a training step would do, found by tracing one.

        Args:
          batch_spec: nested `tf.TypeSpec`s of a batch.

        Returns:
          Per trainable variable, whether the loss depends on it; per state
          variable, whether the step writes it.
        """
        found = []

        def trace(trainable, state, metrics, batch):
            step, scale = tf.constant(0, tf.int64), tf.constant(1.0)
            gradients, updates, _, _ = self.train(trainable, state, metrics, step, scale, batch)
            found.append([[t is not None for t in tensors] for tensors in (gradients, updates)])

        specs = [
            [tf.TensorSpec(v.shape, v.dtype) for v in variables]
            for variables in (self.trainable, self.state)
        ]
        tf.function(trace, autograph=False).get_concrete_function(
            *specs, self.initial_metrics(), batch_spec
        )
        return found[0]

    def train(self, trainable, state, metrics, step, loss_scale, batch):
        """Gradients of one batch.

        Args:
          trainable, state, metrics: tensors in the order of the attributes.
          step: int64 scalar, unique to this step; the seed of its dropout.
          loss_scale: float32 scalar by which the loss is multiplied.
          batch: what the dataset yields: x, (x, y) or (x, y, sample_weight).

        Returns:
          gradients: of the scaled loss; None where the loss does not depend on
            the variable.
          state: new values; None where the model did not touch the variable.
          metrics: new values.
          examples: int64 scalar, the length of the batch.
        """
        x, y, sample_weight = _keras.unpack_batch(_without_optionals(batch))
        seeds = [tf.random.fold_in(seed, step) for seed in self._base_seeds]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trainable)
            with self._scope(trainable, state, metrics, seeds) as scope:
                y_pred = _keras.call(self.model, x, training=True)
                loss = _keras.compute_loss(self.model, x, y, y_pred, sample_weight, True)
                _keras.add_metrics(self.model, loss, x, y, y_pred, sample_weight)
            scaled = loss * tf.cast(loss_scale, loss.dtype)
        gradients = [
            None if g is None else tf.convert_to_tensor(g) for g in tape.gradient(scaled, trainable)
        ]
        after = [scope.get_current_value(v) for v in self.state]
        updates = [None if new is old else new for new, old in zip(after, state, strict=True)]
        return gradients, updates, self._values(scope), _length(x)

    def evaluate(self, trainable, state, metrics, batch):
        """Metrics of one batch: (new metric values, int64 number of examples)."""
        x, y, sample_weight = _keras.unpack_batch(_without_optionals(batch))
        with self._scope(trainable, state, metrics, self._base_seeds) as scope:
            y_pred = _keras.call(self.model, x, training=False)
            loss = _keras.compute_loss(self.model, x, y, y_pred, sample_weight, False)
            _keras.add_metrics(self.model, loss, x, y, y_pred, sample_weight)
        return self._values(scope), _length(x)

    def predict(self, trainable, state, batch):
        """The model's outputs for one batch."""
        x, _, _ = _keras.unpack_batch(_without_optionals(batch))
        with self._scope(trainable, state, None, self._base_seeds):
            return _keras.call(self.model, x, training=False)

    def _scope(self, trainable, state, metrics, seeds) -> keras.StatelessScope:
        pairs = [
            *zip(self.trainable, trainable, strict=True),
            *zip(self.state, state, strict=True),
            *zip(self._seeds, seeds, strict=True),
        ]
        if metrics is not None:
            pairs += zip(self.metrics, metrics, strict=True)
        return keras.StatelessScope(pairs, collect_losses=True)

    def _values(self, scope: keras.StatelessScope) -> list[tf.Tensor]:
        return [scope.get_current_value(v) for v in self.metrics]


def _without_optionals(batch):
    """Keras's datasets carry a missing target or weight as an empty `tf.experimental.Optional`."""
    return keras.tree.map_structure(
        lambda t: None if isinstance(t, tf.experimental.Optional) else t, batch
    )


def _length(x) -> tf.Tensor:
    first = next(t for t in tf.nest.flatten(x) if t is not None)
    return tf.shape(first, out_type=tf.int64)[0]
