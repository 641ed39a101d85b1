"""A user's own `train_step`, run as a function of tensors: what it would apply is noted instead.

A `train_step` reads variables, differentiates with `tf.GradientTape`, and calls `apply` of its
optimizers. In a scope in which tensors stand for the variables, three things remain to be done so
that unchanged code computes what it computes in Keras. Tapes watch these tensors as they would
watch trainable variables. A gradient that is asked for a variable is that of its tensor. And
`apply` leaves the variables alone and notes what it was given, for the push.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps import _keras_interception, _keras_models, _keras_optimizers, _tf_tracing, errors
from tfps.model.optimizer_traits import is_dynamically_scaled, static_loss_scale

# Which of what a step does comes first.
_moments = itertools.count()


class Applied(NamedTuple):
    """What one call of `apply` was given.

    Attributes:
      optimizer: whose `apply` was called.
      gradients: tensors, `tf.IndexedSlices`, or None.
      variables: as many variables.
      moment: greater than that of what the step has done before.
    """

    optimizer: keras.optimizers.Optimizer
    gradients: list[Any]
    variables: list[Any]
    moment: int


class NotingScope(keras.StatelessScope):
    """A stateless scope that knows which variables were read and which were written.

    Attributes:
      read: `id`s of the variables whose values were asked for.
      written: `id` of a variable -> the variable, for each that was assigned a value.
      moments: `id` of a variable -> when it was assigned last; see `Applied`.
    """

    def __init__(self, pairs: Sequence[tuple[keras.Variable, Any]], seeds: Set[int] = frozenset()):
        """Prepares the scope.

        Args:
          pairs: variables with their values.
          seeds: `id`s of the states of random generators.
        """
        super().__init__(pairs, collect_losses=True)
        self.read: set[int] = set()
        self.written: dict[int, keras.Variable] = {}
        self.moments: dict[int, int] = {}
        self._seeds = seeds
        self._first = {id(v): t for v, t in pairs if v.trainable and isinstance(t, tf.Tensor)}
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        """Notes that a variable is read; returns its value, or None if the scope has none."""
        self.read.add(id(variable))
        value, first = super().get_current_value(variable), self._first.get(id(variable))
        if value is first or first is None or not value.dtype.is_floating:
            return value
        # The gradient for what was assigned is that for the variable, whenever the tape began.
        return value + tf.cast(first - tf.stop_gradient(first), value.dtype)

    def count(self, variable: keras.Variable) -> None:
        """Lets an optimizer's `iterations` be one more, as if the step had applied it."""
        if (value := super().get_current_value(variable)) is not None:
            super().add_update((variable, value + 1))

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        """Notes that a variable is assigned a value.

        Raises:
          ConfigError: the value belongs to a branch or a loop within the step.
        """
        variable, value = update
        if self._graph is not None and is_foreign(value, self._graph):
            if id(variable) not in self._seeds:
                raise errors.ConfigError(
                    f"{variable.path} is assigned under a tf.cond, in a loop or in a mapped "
                    "function, whose values do not leave it; compute both values, and assign "
                    "tf.where(condition, new, variable) outside of it"
                )
            # What is drawn inside of a branch or a loop must not be drawn again after it.
            with self._graph.as_default():
                value = tf.random.fold_in(self.get_current_value(variable), 1)
        is_new = value is not super().get_current_value(variable)
        if is_new and value.dtype.is_floating:
            # Who reads the variable afterwards reads a variable: no gradient goes through what it
            # was computed of.
            value = tf.stop_gradient(value)
        self.written[id(variable)] = variable
        self.moments[id(variable)] = next(_moments)
        super().add_update((variable, value))


class Recorder:
    """Notes what a step applies.

    Attributes:
      applied: the calls of `apply`, in their order.
      computed: the gradients that tapes have returned.
    """

    def __init__(self, loss_scale: tf.Tensor):
        """Starts with nothing noted.

        Args:
          loss_scale: float32 scalar by which an optimizer that scales the loss dynamically
            multiplies it. Any other goes by its own `loss_scale_factor`.
        """
        self.applied: list[Applied] = []
        self.computed: list[Any] = []
        self._loss_scale = loss_scale
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """The optimizers whose `apply` was called, each once, in the order of their first calls."""
        return list({id(a.optimizer): a.optimizer for a in self.applied}.values())

    def gradients(self, variables: Sequence[keras.Variable], mean: bool = False) -> list[Any]:
        """What was applied to each variable, or None.

        Args:
          variables: any.
          mean: whether the gradients of several calls are averaged. Otherwise they are added up.
        """
        found: dict[int, list[Any]] = {}
        for call in self.applied:
            for gradient, variable in zip(call.gradients, call.variables, strict=True):
                if gradient is not None:
                    found.setdefault(id(variable), []).append(gradient)
        return [_together(found[id(v)], mean) if id(v) in found else None for v in variables]

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[Any],
        variables: Sequence[Any],
    ) -> None:
        """Takes the place of an optimizer's `apply`.

        Raises:
          ConfigError: the call is under a condition or in a loop.
        """
        gradients = [None if g is None else _as_tensor(g) for g in gradients]
        graph = self._graph
        if graph is not None and (
            tf.compat.v1.get_default_graph() is not graph
            or any(g is not None and is_foreign(g, graph) for g in gradients)
        ):
            raise errors.ConfigError(
                f"{optimizer.name}.apply is called under a tf.cond, in a loop or in a mapped "
                "function, so what is pushed would depend on it; call it in every step, with "
                "gradients of zero where nothing is to change, or set the optimizer's "
                "gradient_accumulation_steps"
            )
        pairs = []
        for gradient, variable in zip(gradients, variables, strict=True):
            if not getattr(variable, "overwrite_with_gradient", False):
                pairs.append((gradient, variable))
            elif gradient is not None:
                variable.assign(gradient)  # As Keras does: the gradient is the new value.
        if pairs:
            given, trained = map(list, zip(*pairs, strict=True))
            self.applied.append(Applied(optimizer, given, trained, next(_moments)))

    def scale_loss(self, optimizer: keras.optimizers.Optimizer, loss: tf.Tensor) -> tf.Tensor:
        """Takes the place of an optimizer's `scale_loss`."""
        if is_dynamically_scaled(optimizer):
            return loss * tf.cast(self._loss_scale, loss.dtype)
        factor = static_loss_scale(optimizer)
        return loss if factor == 1.0 else loss * tf.cast(factor, loss.dtype)


@contextlib.contextmanager
def recording(
    stand_ins: Sequence[tuple[keras.Variable, tf.Tensor]], loss_scale: tf.Tensor
) -> Iterator[Recorder]:
    """A context in which a `train_step` computes gradients, and applies nothing.

    Args:
      stand_ins: pairs of a variable and the tensor of which its value is computed.
      loss_scale: float32 scalar, see `Recorder`.

    Yields:
      What notes the calls of `apply`.
    """
    recorder = Recorder(loss_scale)
    watched = [(v, t) for v, t in stand_ins if _keras_interception.watched_when_read(v)]
    tensors: Mapping[int, tf.Tensor] = {id(v): t for v, t in stand_ins}
    with (
        _tf_tracing.tapes_watch(watched) as recorder.computed,
        _keras_interception.handles_are(tensors),
        _keras_interception.intercepted(recorder.apply, recorder.scale_loss),
    ):
        yield recorder


def own_method(model: keras.Model, mode: str) -> str | None:
    """The name of the method by which a model does a step of its own way.

    Args:
      model: compiled.
      mode: "train", "test" or "predict".

    Returns:
      The name, or None if the model does it as every Keras model does.
    """
    method = f"{mode}_step"
    own = _keras_models.overrides(model, method)
    if mode != "predict":
        # Also what these return is the model's own.
        own = own or _keras_models.overrides(model, "compute_metrics")
    if mode == "train":
        own = own or _keras_optimizers.applies_its_own_way(getattr(model, "optimizer", None))
    return method if own else None


def own_logs(returned: Any, method: str, model: keras.Model) -> dict[str, Any]:
    """What a step returned, as logs; to be called in the step's scope.

    Raises:
      ConfigError: it is no dict.
    """
    if returned is None:
        return {}
    if not isinstance(returned, dict):
        raise errors.ConfigError(
            f"{type(model).__name__}.{method} returned a {type(returned).__name__}; let it return "
            "a dict of names and scalars, or None"
        )
    return tf.nest.map_structure(_read, returned)


def _read(leaf: Any) -> Any:
    # A variable has another value outside of the scope.
    return tf.convert_to_tensor(leaf) if isinstance(leaf, keras.Variable) else leaf


def fitting(gradient: Any, source: tf.Tensor, variable: keras.Variable) -> Any:
    """A gradient that was applied to a variable, in the shape and dtype of what it is for."""
    if gradient is None:
        return None
    gradient = tf.cast(tf.convert_to_tensor(gradient), source.dtype)
    if not gradient.shape.is_compatible_with(source.shape):
        raise errors.ConfigError(
            f"a gradient of shape {gradient.shape} was applied to {variable.path}, whose shape is "
            f"{source.shape}; apply a gradient of the variable's own shape"
        )
    return tf.ensure_shape(gradient, source.shape)


def is_foreign(value: Any, graph: tf.Graph) -> bool:
    """Whether a tensor belongs to another graph: that of a branch or a loop."""
    if isinstance(value, tf.IndexedSlices):
        value = value.values
    return getattr(value, "graph", graph) is not graph


def _as_tensor(gradient: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.convert_to_tensor(gradient)


def _together(gradients: list[Any], mean: bool) -> Any:
    if len(gradients) == 1:
        return gradients[0]
    total = tf.add_n([tf.convert_to_tensor(g) for g in gradients])
    return total / tf.cast(len(gradients), total.dtype) if mean else total
