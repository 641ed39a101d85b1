"""The variables of a compiled Keras model, and a scope in which they have given values."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_models, _keras_optimizers, _tf_placement, _tf_tracing
from tfps.model.metric_results import MetricResults
from tfps.model.own_step import NotingScope
from tfps.model.step_devices import StepDevices
from tfps.model.step_logs import Logs


class ModelVariables:
    """Which variables a model has, and what a step does with them.

    Attributes:
      model: the Keras model.
      optimizers: the optimizers that a training step applies gradients with.
      owner: per trainable variable, the index in `optimizers` of the one that updates it, or None.
      calls: per trainable variable, which calls of its optimizer's `apply` in a step of training
        concern it; empty if no optimizer is applied several times, or if what several calls are
        given is added up and applied once.
      num_calls: per optimizer, how often a step applies it; likewise empty.
      trainable: the variables that an optimizer updates: the model's trainable variables, or what
        an own `train_step` applies gradients to.
      state: all other weights of the model: batch-norm statistics, counters, frozen layers, and
        what takes its gradient for its new value (the scales of float8 layers).
      metrics: the variables of the compiled metrics and of the mean loss, and those that an own
        `train_step` updates.
      unlisted: variables that the model assigns and does not list among its weights, such as the
        states of a stateful RNN; known after `inspection.inspect`.
      counts: per optimizer whose `iterations` a training step reads, the variable.
      logs: what an own `train_step` returns, or None if it is what the metrics are.
      base_seeds: the values of all random seeds that the model draws from, int arrays. Each step
        folds its number into them.
      devices: where a worker computes a step.
      named_devices: the devices that the model's own code names, such as "GPU:1", as far as steps
        were traced.
      branches: whether a step that was traced has loops or conditionals.
    """

    def __init__(self, model: keras.Model):
        """Lists the variables of a built model.

        A model that was compiled to run eagerly is warned of.
        """
        if model.run_eagerly:
            warnings.warn(
                "the model was compiled with run_eagerly=True: its steps run op by op on the "
                "chief, one at a time, and once more on the first batch; this is for debugging",
                stacklevel=2,
            )
        self.model = model
        self.optimizers = [model.optimizer] if getattr(model, "optimizer", None) else []
        # The gradients of the others are their new values: they are state that a step writes.
        self.trainable = [v for v in model.trainable_variables if not v.overwrite_with_gradient]
        self.owner: list[int | None] = [0] * len(self.trainable)
        self.calls: list[tuple[int, ...]] = []
        self.num_calls: list[int] = []
        trainable = {id(v) for v in self.trainable}
        self.state = [v for v in model.weights if id(v) not in trainable]
        self.metrics = list(model.metrics_variables)
        self.unlisted: list[keras.Variable] = []
        self.counts: list[keras.Variable] = []
        self.logs: Logs | None = None
        self._trainable = list(model.trainable_variables)
        self._weights = list(model.weights), list(self.metrics)
        self._compilation = _keras_models.compilation(model)
        self._seeds = _keras_models.seed_states(model)
        self.base_seeds = [v.numpy() for v in self._seeds]
        self.devices = StepDevices(model, self.seed_ids, None, {}, compiles=False)
        self.named_devices: set[str] = set()
        self.branches = False
        self._assigned: dict[int, keras.Variable] = {}  # In any scope until now, by `id`.
        self._read: set[int] = set()  # `id`s of what was read in any scope until now.
        self._noted: set[int] | None = None  # `id`s of what is assigned within `noting`.
        self._results: MetricResults | None = None
        self._rates = self._current_rates()

    @property
    def overwritten(self) -> list[int]:
        """The indices in `state` of trainable variables whose gradient is their new value."""
        listed = {id(v) for v in self._trainable if v.overwrite_with_gradient}
        return [i for i, v in enumerate(self.state) if id(v) in listed]

    @property
    def optimized(self) -> list[keras.Variable]:
        """The variables that Keras builds an optimizer for: those trained and those overwritten."""
        own = {id(v) for v in [*self.trainable, *(self.state[i] for i in self.overwritten)]}
        listed = [v for v in self._trainable if id(v) in own]
        if not self.overwritten:
            return self.trainable
        known = set(map(id, listed))
        return [*listed, *(v for v in self.trainable if id(v) not in known)]

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
        calls: Sequence[tuple[int, ...]],
        num_calls: Sequence[int],
    ) -> None:
        """Takes on what an own `train_step` was found to do; see the attributes of these names."""
        self.optimizers, self.owner = list(optimizers), list(owner)
        self.trainable, self.state = list(trainable), list(state)
        self.metrics, self.counts, self.logs = list(metrics), list(counts), logs
        self.calls, self.num_calls = list(calls), list(num_calls)
        self._results = None
        self._rates = self._current_rates()

    def move_seeds(self) -> None:
        """Moves the model's random generators on, so that who uses them next draws other numbers.

        The steps of this object go by `base_seeds` and their own numbers.
        """
        for seed in self._seeds:
            seed.assign_add([0, 1])

    def is_current(self, trains: bool) -> bool:
        """Whether the model still has these variables and rates, and was not compiled anew.

        Args:
          trains: whether the model is being trained. As in Keras, which layers are frozen is then
            settled until the next `compile`.
        """
        same = _are_same(self.model.weights, self._weights[0])
        same = same and _are_same(self.model.metrics_variables, self._weights[1])
        same = same and (trains or _are_same(self.model.trainable_variables, self._trainable))
        same = same and self._compilation == _keras_models.compilation(self.model)
        return same and self.has_rates()

    def has_rates(self) -> bool:
        """Whether no optimizer was given another schedule, or one in place of a number."""
        known = {id(one): rate for one, rate in self._rates}
        # A `MultiOptimizer` may learn only when it is built which optimizers are inside of it.
        return all(known.get(id(one), rate) is rate for one, rate in self._current_rates())

    def _current_rates(self) -> list[tuple[keras.optimizers.Optimizer, Any]]:
        """Optimizers, and what gives them their rates: variables, schedules or callables."""
        inside = [
            one for optimizer in self.optimizers for one in _keras_optimizers.nested(optimizer)
        ]
        return [(one, _keras_optimizers.learning_rate_of(one)) for one in inside]

    def found_unlisted(self) -> list[keras.Variable]:
        """The variables that steps traced until now assign, and that no attribute lists."""
        listed = [*self.trainable, *self.state, *self.metrics, *self._seeds]
        return [v for i, v in self._assigned.items() if i not in set(map(id, listed))]

    @contextlib.contextmanager
    def noting(self) -> Iterator[list[keras.Variable]]:
        """A context in which steps are traced.

        Yields:
          A list, which has the trainable variables and the state that these steps assign when the
          context ends.
        """
        found: list[keras.Variable] = []
        self._noted = set()
        try:
            yield found
            found += [v for v in (*self.trainable, *self.state) if id(v) in self._noted]
        finally:
            self._noted = None

    def counts_read(self) -> list[keras.Variable]:
        """Those of `counts` that steps traced until now read."""
        return [v for v in self.counts if id(v) in self._read]

    def assigned_trainable(self) -> list[bool]:
        """Per trainable variable, whether steps traced until now assign it."""
        return [id(v) in self._assigned for v in self.trainable]

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

    @property
    def results(self) -> MetricResults:
        """What the model's metrics are, computed of values of the metric variables."""
        if self._results is None:
            self._results = MetricResults(self.model, self.metrics)
        return self._results

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
          metrics: see `train`; None if neither metrics nor unlisted variables are used. With those
            of the metric variables alone, unlisted variables have the values of the model.
          step: int64 scalar from which random generators are seeded, or None for a step that
            draws no numbers.
          counts: integer scalars in the order of the attribute; empty outside of training.
        """
        seeds = self.base_seeds
        if step is not None:
            seeds = [tf.random.fold_in(seed, step) for seed in seeds]
        pairs = [
            *self.pairs(trainable, state),
            *zip(self._seeds, seeds, strict=True),
            *zip(self.counts, counts, strict=False),
        ]
        if metrics is not None:
            n = len(self.metrics)
            pairs += zip(self.metrics, metrics[:n], strict=True)
            if len(metrics) > n:
                unlisted = metrics[len(metrics) - len(self.unlisted) :]
                pairs += zip(self.unlisted, unlisted, strict=True)
        with _tf_tracing.functions_inlined(), NotingScope(pairs, self.seed_ids) as scope:
            yield scope
        self._assigned.update(scope.written)
        self._read |= scope.read
        if self._noted is not None:
            self._noted |= scope.written.keys()
        if not tf.executing_eagerly():
            graph = tf.compat.v1.get_default_graph()
            self.named_devices |= _tf_placement.devices_named(graph)
            self.branches = self.branches or _tf_placement.branches(graph)

    def pairs(
        self, trainable: Sequence[tf.Tensor], state: Sequence[tf.Tensor]
    ) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Trainable variables and state, each with its tensor, in the order of the attributes."""
        return [*zip(self.trainable, trainable, strict=True), *zip(self.state, state, strict=True)]

    def values_in(
        self, scope: keras.StatelessScope, extras: Sequence[tf.Tensor] = ()
    ) -> list[tf.Tensor]:
        """The values of metrics and unlisted variables in a scope, with `extras` between them."""
        metrics, unlisted = (
            [scope.get_current_value(v) for v in some] for some in (self.metrics, self.unlisted)
        )
        return [*metrics, *extras, *unlisted]

    def updates_in(
        self, scope: keras.StatelessScope, state: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        """Per state variable, its value in a scope, or None if that is still the one of `state`."""
        return _changed(self.state, scope, state)

    def assigned_in(
        self, scope: keras.StatelessScope, trainable: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        """Per trainable variable, what it is assigned in a scope, or None if that is nothing."""
        return _changed(self.trainable, scope, trainable)


def _are_same(some: Sequence[keras.Variable], others: Sequence[keras.Variable]) -> bool:
    return [id(v) for v in some] == [id(v) for v in others]


def _changed(
    variables: Sequence[keras.Variable], scope: keras.StatelessScope, before: Sequence[tf.Tensor]
) -> list[tf.Tensor | None]:
    after = [scope.get_current_value(v) for v in variables]
    return [None if new is old else new for new, old in zip(after, before, strict=True)]
