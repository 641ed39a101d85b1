"""A compiled Keras model as pure functions of tensors.

Nothing here knows of servers: weights, state, metrics and random seeds come in
as tensors and go out as tensors, so that the same function runs on whatever
worker, whichever servers the weights came from.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from tfps import _keras, errors
from tfps.model.lookups import Lookups, Rows, depends


class StatelessModel:
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
        self.base_seeds = [v.numpy() for v in self._seeds]
        self._publish = None

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

    def publish(self, metrics) -> dict:
        """Sets the metric variables; returns what the model makes of them, scalar tensors.

        As a graph, like Keras does it after a batch: op by op it would cost the
        chief milliseconds.

        Args:
          metrics: values in the order of the attribute.
        """
        values = [tf.constant(m, v.dtype) for m, v in zip(metrics, self.metrics, strict=True)]
        if self._publish is None:
            publish = tf.function(self._published, autograph=False)
            self._publish = publish.get_concrete_function(values)
        return self._publish(values)

    def _published(self, values):
        for variable, value in zip(self.metrics, values, strict=True):
            variable.assign(value)
        return self.model.get_metrics_result()

    def inspect(self, batch_spec, train: bool = True) -> "Inspection":
        """What a step would do with the variables, found by tracing one.

        Args:
          batch_spec: nested `tf.TypeSpec`s of a batch.
          train: whether it is a step of training; else one of prediction.
        """
        found = []

        def trace(trainable, rows, state, metrics, batch):
            lookups = {
                i: Lookups(self.trainable[i], lambda ids, k=k: tf.gather(rows[k], ids))
                for k, i in enumerate(candidates)
            }
            step, scale = tf.constant(0, tf.int64), tf.constant(1.0)
            with contextlib.ExitStack() as stack:
                for lookup in lookups.values():
                    stack.enter_context(lookup)
                sources = [*trainable, *rows]
                gradients, updates = [None] * len(sources), [None] * len(state)
                if train:
                    gradients, updates, _, _ = self._train(
                        trainable, state, metrics, step, scale, batch, sources
                    )
                else:
                    self.predict(trainable, state, batch)
            looked_up = dict(zip(candidates, gradients[len(trainable) :], strict=True))
            # A table is looked up and never used otherwise.
            tables = [
                bool(i in lookups and lookups[i].ids and not value.consumers())
                for i, value in enumerate(trainable)
            ]
            inputs = {id(t.op) for t in [*trainable, *rows, *state]}
            for i, is_table in enumerate(tables):
                # Ids that come out of the weights are known only when the weights are.
                if is_table and any(depends(ids, inputs) for ids in lookups[i].ids):
                    tables[i] = False
            connected = [
                g is not None or looked_up.get(i) is not None
                for i, g in enumerate(gradients[: len(trainable)])
            ]
            found.append(Inspection(connected, [u is not None for u in updates], tables))

        candidates = [
            i for i, v in enumerate(self.trainable) if len(v.shape) == 2 and v.constraint is None
        ]

        def specs(variables):
            return [tf.TensorSpec(v.shape, v.dtype) for v in variables]

        tf.function(trace, autograph=False).get_concrete_function(
            specs(self.trainable),
            specs(self.trainable[i] for i in candidates),
            specs(self.state),
            self.initial_metrics(),
            batch_spec,
        )
        return found[0]

    def lookups(self, tables: Sequence[int], step, batch, training: bool) -> dict[int, list]:
        """The ids that a step looks up in tables, without the weights.

        Args:
          tables: indices of trainable variables.
          step: int64 scalar, as for `train`.
          batch: as for `train`.
          training: whether the step is one of training.

        Returns:
          Table -> its lookups in the order in which the step makes them, integer
          tensors of any shape.
        """
        if not tables:
            return {}

        batch = _without_optionals(batch)
        leaves = tf.nest.flatten(batch, expand_composites=True)
        given = [k for k, leaf in enumerate(leaves) if leaf is not None]

        def trace(step, *tensors):
            whole = list(leaves)
            for k, tensor in zip(given, tensors, strict=True):
                whole[k] = tensor
            whole = tf.nest.pack_sequence_as(batch, whole, expand_composites=True)
            return self._looked_up(tables, step, whole, training)

        # What the ids do not depend on has to go: TensorFlow keeps all that assertions
        # check, and a loss of batches of unknown length has some, so that the forward
        # pass would run twice.
        inputs = [step, *(leaves[k] for k in given)]
        wrapped = tf.compat.v1.wrap_function(
            trace, [tf.TensorSpec(t.shape, t.dtype) for t in inputs]
        )
        feeds = wrapped.inputs[: len(inputs)]
        return wrapped.prune(feeds, wrapped.structured_outputs)(*inputs)

    def _looked_up(self, tables, step, batch, training) -> dict[int, list]:
        def absent(variable):
            return tf.fill(variable.shape, tf.zeros([], variable.dtype))

        found = {
            i: Lookups(
                self.trainable[i],
                lambda ids, v=self.trainable[i]: tf.zeros(
                    tf.concat([tf.shape(ids), v.shape[1:]], 0), v.dtype
                ),
            )
            for i in tables
        }
        x, y, sample_weight = _keras.unpack_batch(batch)
        trainable = [absent(v) for v in self.trainable]
        state = [absent(v) for v in self.state]
        metrics = [absent(v) for v in self.metrics]
        with contextlib.ExitStack() as stack:
            for lookup in found.values():
                stack.enter_context(lookup)
            stack.enter_context(self._scope(trainable, state, metrics, self._seeds_of(step)))
            y_pred = _keras.call(self.model, x, training)
            if training:
                _keras.compute_loss(self.model, x, y, y_pred, sample_weight, True)
        return {i: lookup.ids for i, lookup in found.items()}

    def train(self, trainable, state, metrics, step, loss_scale, batch):
        """Gradients of one batch.

        Args:
          trainable, state, metrics: tensors in the order of the attributes; for a
            table, `tables.Rows`.
          step: int64 scalar, unique to this step; the seed of its dropout.
          loss_scale: float32 scalar by which the loss is multiplied.
          batch: what the dataset yields: x, (x, y) or (x, y, sample_weight).

        Returns:
          gradients: of the scaled loss; None where the loss does not depend on
            the variable. For a table, of the rows: those of one that the batch
            names several times are summed.
          state: new values; None where the model did not touch the variable.
          metrics: new values.
          examples: int64 scalar, the length of the batch.
        """
        sources = [t.values if isinstance(t, Rows) else t for t in trainable]
        with self._tables(trainable) as trainable:
            gradients, *rest = self._train(
                trainable, state, metrics, step, loss_scale, batch, sources
            )
        # Of rows, those that a batch names several times are summed by this.
        return [None if g is None else tf.convert_to_tensor(g) for g in gradients], *rest

    def _train(self, trainable, state, metrics, step, loss_scale, batch, sources):
        x, y, sample_weight = _keras.unpack_batch(_without_optionals(batch))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            with self._scope(trainable, state, metrics, self._seeds_of(step)) as scope:
                y_pred = _keras.call(self.model, x, training=True)
                loss = _keras.compute_loss(self.model, x, y, y_pred, sample_weight, True)
                _keras.add_metrics(self.model, loss, x, y, y_pred, sample_weight)
            scaled = loss * tf.cast(loss_scale, loss.dtype)
        gradients = tape.gradient(scaled, sources)
        after = [scope.get_current_value(v) for v in self.state]
        updates = [None if new is old else new for new, old in zip(after, state, strict=True)]
        return gradients, updates, self._values(scope), _length(x)

    def evaluate(self, trainable, state, metrics, batch):
        """Metrics of one batch: (new metric values, int64 number of examples)."""
        x, y, sample_weight = _keras.unpack_batch(_without_optionals(batch))
        with (
            self._tables(trainable) as trainable,
            self._scope(trainable, state, metrics, self.base_seeds) as scope,
        ):
            y_pred = _keras.call(self.model, x, training=False)
            loss = _keras.compute_loss(self.model, x, y, y_pred, sample_weight, False)
            _keras.add_metrics(self.model, loss, x, y, y_pred, sample_weight)
        return self._values(scope), _length(x)

    def predict(self, trainable, state, batch):
        """The model's outputs for one batch."""
        x, _, _ = _keras.unpack_batch(_without_optionals(batch))
        with (
            self._tables(trainable) as trainable,
            self._scope(trainable, state, None, self.base_seeds),
        ):
            return _keras.call(self.model, x, training=False)

    @contextlib.contextmanager
    def _tables(self, trainable):
        """Lets the model look up rows; yields `trainable` with stand-ins for the tables."""
        stand_ins = {}
        with contextlib.ExitStack() as stack:
            for i, value in enumerate(trainable):
                if isinstance(value, Rows):
                    variable, positions = self.trainable[i], iter(value.positions)

                    def find(ids, rows=value.values, positions=positions):
                        return tf.gather(rows, next(positions))

                    stack.enter_context(Lookups(variable, find))
                    stand_ins[i] = tf.fill(variable.shape, tf.zeros([], variable.dtype))
            yield [stand_ins.get(i, value) for i, value in enumerate(trainable)]
        for i, value in stand_ins.items():
            if value.consumers():
                raise errors.ConfigError(
                    f"{self.trainable[i].path} is only looked up in training, but used as a whole "
                    "in evaluation or prediction; give it a regularizer or constraint, or use it "
                    "whole in training too"
                )

    def _seeds_of(self, step) -> list[tf.Tensor]:
        return [tf.random.fold_in(seed, step) for seed in self.base_seeds]

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


class Inspection(NamedTuple):
    """What a step does with the variables of a model.

    Attributes:
      connected: per trainable variable, whether the loss depends on it.
      updated: per state variable, whether the step writes it.
      tables: per trainable variable, whether the step only looks up rows of it.
    """

    connected: list[bool]
    updated: list[bool]
    tables: list[bool]


def _without_optionals(batch):
    """Keras's datasets carry a missing target or weight as an empty `tf.experimental.Optional`."""
    return keras.tree.map_structure(
        lambda t: None if isinstance(t, tf.experimental.Optional) else t, batch
    )


def _length(x) -> tf.Tensor:
    first = next(t for t in tf.nest.flatten(x) if t is not None)
    return tf.shape(first, out_type=tf.int64)[0]
