"""What an own `train_step` or `test_step` does with the variables, found by tracing it once."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_optimizers, errors
from tfps.model.batches import without_optionals
from tfps.model.inspection import (
    Inspection,
    are_added_to,
    count_candidates,
    require_gradients,
)
from tfps.model.lookups import Lookups, depends, looking_up
from tfps.model.optimizer_set import ONCE
from tfps.model.own_step import NotingScope, Recorder, own_method, recording
from tfps.model.stateless_model import StatelessModel
from tfps.model.step_logs import Logs, StepLogs


def inspect_own(model: StatelessModel, batch_spec: Any) -> Inspection:
    """Finds what an own `train_step` does, and tells the model: `StatelessModel.adopt`.

    Args:
      model: a model whose training step is its own.
      batch_spec: nested `tf.TypeSpec`s of a batch.

    Raises:
      ConfigError: the step cannot be split into computing on a worker and applying on servers.
      ValueError: an `apply` is given no gradient at all, as in Keras.
    """
    model.counts = count_candidates(model)
    found: list[tuple[Findings, StepLogs]] = []

    def step(number, trainable, state, metrics, counts, batch, inputs):
        candidates = [i for i, v in enumerate(model.trainable) if _may_be_table(v)]
        reads = {i: _Reads(trainable[i]) for i in candidates}
        stand_ins = [
            *zip(model.trainable, trainable, strict=True),
            *zip(model.state, state, strict=True),
        ]
        with (
            looking_up(model.trainable, reads) as lookups,
            model.scope(trainable, state, metrics, number, counts) as scope,
            recording(stand_ins, tf.constant(1.0)) as recorder,
        ):
            logs = model.own_step("train", batch)
        findings = Findings(model, scope, recorder, stand_ins)
        findings.find_tables(reads, lookups)
        findings.find_sums()
        after = [scope.get_current_value(v) for v in findings.metrics]
        found.append((findings, StepLogs(logs, after, inputs)))

    wrapped = _traced(model, batch_spec, step)
    findings, logs = found[0]
    logs.extract(wrapped)
    findings.tell(model, logs)
    return findings.inspection()


def inspect_test(model: StatelessModel, batch_spec: Any) -> StepLogs | None:
    """Finds what becomes of the logs of an own `test_step`; None if they are the metrics'.

    Args:
      model: the model.
      batch_spec: nested `tf.TypeSpec`s of a batch.
    """
    if own_method(model.model, "test") is None:
        return None
    found: list[StepLogs] = []

    def step(number, trainable, state, metrics, counts, batch, inputs):
        with model.scope(trainable, state, metrics, number, counts) as scope:
            logs = model.own_step("test", batch)
        after = [scope.get_current_value(v) for v in model.metrics]
        found.append(StepLogs(logs, after, inputs))

    wrapped = _traced(model, batch_spec, step)
    found[0].extract(wrapped)
    return found[0]


class _Reads:
    """Answers the lookups in a variable, and knows the operations that read it for them."""

    def __init__(self, whole: tf.Tensor):
        self._whole = whole
        self.ops: set[int] = set()

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        rows = tf.gather(self._whole, ids)
        self.ops.add(id(rows.op))
        return rows

    def are_all(self) -> bool:
        """Whether nothing else reads the variable."""
        return bool(self.ops) and {id(op) for op in self._whole.consumers()} <= self.ops


class Findings:
    """What one run of an own `train_step` has shown.

    Attributes:
      optimizers, trainable, owner, calls, num_calls, state, metrics, counts: see
        `StatelessModel`.
    """

    def __init__(
        self,
        model: StatelessModel,
        scope: NotingScope,
        recorder: Recorder,
        stand_ins: Sequence[tuple[keras.Variable, tf.Tensor]],
    ):
        """Looks at what was written and applied.

        Args:
          model: as the step was run, with everything trainable among `trainable`.
          scope: of the run.
          recorder: of the run.
          stand_ins: pairs of a variable and the tensor of which its value was computed.

        Raises:
          ConfigError: the step cannot be split.
        """
        self.counts = [v for v in model.counts if id(v) in scope.read]
        before = {id(v): t for v, t in stand_ins}
        self._recorder, self._name = recorder, type(model.model).__name__
        self._require_variables()
        self._gradients: dict[int, list[Any]] = {}
        self._calls: dict[int, list[int]] = {}  # `id` of a variable -> its optimizer's calls
        counted: dict[int, int] = {}  # `id` of an optimizer -> its calls until here
        for call in recorder.applied:
            number = counted.setdefault(id(call.optimizer), 0)
            counted[id(call.optimizer)] += 1
            for gradient, variable in zip(call.gradients, call.variables, strict=True):
                self._gradients.setdefault(id(variable), []).append(gradient)
                if gradient is not None:
                    self._calls.setdefault(id(variable), []).append(number)
        applied = {id(v): v for call in recorder.applied for v in call.variables}
        # A step that applies nothing needs no optimizer, but the servers have one.
        self.optimizers = recorder.optimizers or model.optimizers or [keras.optimizers.SGD()]
        written = scope.written
        for call in recorder.applied:
            for variable in call.variables:
                if scope.moments.get(id(variable), -1) > call.moment:
                    raise errors.ConfigError(
                        f"{self._name}.train_step assigns {variable.path} after it has applied "
                        "gradients to it; the servers update it, so give it a constraint in place "
                        "of the assignment, or assign it at the beginning of the step"
                    )
        # What a step only writes is no optimizer's business: the model's own moving averages.
        kept = [v for v in model.trainable if id(v) in applied or id(v) not in written]
        known = {id(v) for v in kept}
        self.trainable = [*kept, *(v for i, v in applied.items() if i not in known)]
        trained = {id(v) for v in self.trainable}
        self._assigned = [id(v) in written for v in self.trainable]
        rest = [v for v in (*model.trainable, *model.state) if id(v) not in trained]
        taken = {id(v) for v in (*model.trainable, *model.state, *model.metrics)}
        others = [v for i, v in written.items() if i not in taken | trained | model.seed_ids]
        self._require_free(others, model)
        # Keras declares the variables of metrics as sums. What else the model does not list, such
        # as the states of a stateful RNN, each worker has for itself.
        self.metrics = [*model.metrics, *(v for v in others if v.aggregation == "sum")]
        self.state, self._unlisted = rest, [v for v in others if v.aggregation != "sum"]
        self._updated = [
            id(v) in written and scope.get_current_value(v) is not before.get(id(v))
            for v in self.state
        ]
        owners = self._owners()
        self.owner = [owners.get(id(v)) for v in self.trainable]
        self.calls, self.num_calls = self._repeated(counted)
        self._tables: set[int] = set()
        self._added_to: list[bool] = []
        self._values = [(before[id(v)], scope.get_current_value(v)) for v in self.state]
        self._inputs = list(before.values())
        self._candidates = list(model.trainable)

    def find_tables(self, reads: dict[int, _Reads], lookups: dict[int, Lookups]) -> None:
        """Notes the variables of which the step only looks up rows."""
        computed = {id(g) for g in self._recorder.computed}
        graph, inputs = tf.compat.v1.get_default_graph(), {id(t.op) for t in self._inputs}
        for i, read in reads.items():
            variable, ids = self._candidates[i], lookups[i].ids
            gradients = self._gradients.get(id(variable), [])
            if (
                read.are_all()
                # Ids that are computed from the weights are known only when the weights are.
                and all(t.graph is graph and not depends(t, inputs) for t in ids)
                and all(_goes_straight(g, computed) for g in gradients)
                and len(gradients) <= 1
            ):
                self._tables.add(id(variable))

    def find_sums(self) -> None:
        """Notes the variables of the model's state to which the step only adds."""
        self._added_to = are_added_to(*zip(*self._values, strict=True)) if self._values else []

    def inspection(self) -> Inspection:
        """The findings that the servers need."""
        connected = [
            any(g is not None for g in self._gradients.get(id(v), [])) for v in self.trainable
        ]
        tables = [id(v) in self._tables for v in self.trainable]
        return Inspection(
            connected, self._updated, tables, self._unlisted, self._added_to, self._assigned
        )

    def tell(self, model: StatelessModel, logs: Logs) -> None:
        """Tells the model, and warns as Keras does and of what is not as in Keras.

        Raises:
          ValueError: an `apply` was given no gradient at all, as in Keras.
        """
        self._warn()
        model.adopt(
            self.optimizers,
            self.trainable,
            self.owner,
            self.state,
            self.metrics,
            self.counts,
            logs,
            self.calls,
            self.num_calls,
        )

    def _warn(self) -> None:
        for call in self._recorder.applied:
            missing = [g is None for g in call.gradients]
            require_gradients([v.path for v in call.variables], missing)
        for optimizer in self.optimizers:
            calls = [c for c in self._recorder.applied if c.optimizer is optimizer]
            if len(calls) > 1:
                what = (
                    "the mean of what a variable is given, as many times. That acts like a "
                    "learning rate as many times as large, and may diverge where plain Keras does "
                    "not: lower the rate, or call apply once a step"
                    if self.calls
                    else ("the sum of what a variable is given, once")
                )
                warnings.warn(
                    f"{self._name}.train_step calls {optimizer.name}.apply {len(calls)} times; all "
                    "of these gradients are computed with the values before the step, and the "
                    f"servers apply {what}",
                    stacklevel=2,
                )

    def _repeated(self, counted: dict[int, int]) -> tuple[list[tuple[int, ...]], list[int]]:
        """`calls` and `num_calls`, of the number of calls by `id` of an optimizer."""
        # An optimizer with others inside updates them in a way of its own.
        plain = all(len(_keras_optimizers.nested(o)) == 1 for o in self.optimizers)
        if not plain or max(counted.values(), default=1) == 1:
            return [], []
        calls = [tuple(self._calls.get(id(v), ONCE)) for v in self.trainable]
        return calls, [counted.get(id(o), 1) for o in self.optimizers]

    def _require_variables(self) -> None:
        for call in self._recorder.applied:
            for variable in call.variables:
                if not isinstance(variable, keras.Variable):
                    raise errors.ConfigError(
                        f"{self._name}.train_step applies gradients to {variable!r}, which is no "
                        "keras.Variable; make it with self.add_weight or keras.Variable"
                    )

    def _owners(self) -> dict[int, int]:
        """`id` of a variable -> the index of the optimizer that updates it."""
        index = {id(optimizer): k for k, optimizer in enumerate(self.optimizers)}
        owners: dict[int, int] = {}
        for call in self._recorder.applied:
            k = index[id(call.optimizer)]
            for variable in call.variables:
                if owners.setdefault(id(variable), k) != k:
                    raise errors.ConfigError(
                        f"{self._name}.train_step applies {self.optimizers[k].name} and "
                        f"{self.optimizers[owners[id(variable)]].name} to {variable.path}; let one "
                        "optimizer update a variable"
                    )
        return owners

    def _require_free(self, others: Sequence[keras.Variable], model: StatelessModel) -> None:
        of_optimizers = {
            id(v)
            for o in _keras_optimizers.optimizers_of(model.model)
            for v in _keras_optimizers.settings_of(o)
        }
        for variable in others:
            if id(variable) in of_optimizers:
                raise errors.ConfigError(
                    f"{self._name}.train_step assigns {variable.path}, which belongs to an "
                    "optimizer on the servers; set it in a callback, or use a schedule"
                )


def _goes_straight(gradient: Any, computed: set[int]) -> bool:
    """Whether a gradient is what a tape gave for lookups, and nothing else looks at it."""
    if gradient is None:
        return True
    if id(gradient) not in computed or not isinstance(gradient, tf.IndexedSlices):
        return False
    return not gradient.values.consumers() and not gradient.indices.consumers()


def _may_be_table(variable: keras.Variable) -> bool:
    return len(variable.shape) == 2 and variable.constraint is None


def _traced(model: StatelessModel, batch_spec: Any, step: Any) -> Any:
    """Traces a step on tensors in place of everything; returns the wrapped function."""
    batch = without_optionals(batch_spec)
    leaves = tf.nest.flatten(batch, expand_composites=True)
    given = [k for k, leaf in enumerate(leaves) if leaf is not None]
    groups: list[Sequence[keras.Variable]] = [
        model.trainable, model.state, model.metrics, model.counts,
    ]  # fmt: skip

    def trace(number, *tensors):
        rest, taken = list(tensors), []
        for group in groups:
            taken.append(rest[: len(group)])
            rest = rest[len(group) :]
        whole = list(leaves)
        for k, tensor in zip(given, rest, strict=True):
            whole[k] = tensor
        whole = tf.nest.pack_sequence_as(batch, whole, expand_composites=True)
        step(number, *taken, whole, [number, *tensors])
        return tf.constant(0)

    signature = [tf.TensorSpec([], tf.int64)]
    signature += [tf.TensorSpec(v.shape, v.dtype) for group in groups for v in group]
    signature += [tf.TensorSpec(leaves[k].shape, leaves[k].dtype) for k in given]
    # Only this kind of trace can be cut: the results of metrics are computed by the chief.
    return tf.compat.v1.wrap_function(trace, signature)
