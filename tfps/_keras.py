"""The private names of Keras that tfps uses, as of Keras 3.15.

No other file of the package imports from `keras.src` or touches an underscore of Keras. The two
exceptions are subclasses of Keras's optimizers, which override private methods:
`model/stateless_optimizer.py` and `model/frozen_adam.py`.
"""

import contextlib
import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.tensorflow.trainer import potentially_ragged_concat
from keras.src.initializers.random_initializers import compute_fans
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.random.seed_generator import global_seed_generator
from keras.src.trainers.compile_utils import CompileMetrics
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.trainers.trainer import Trainer as BaseTrainer
from keras.src.utils.python_utils import pythonify_logs

from tfps import _tf

__all__ = [
    "BaseOptimizer",
    "EpochIterator",
    "adam_moments",
    "add_metrics",
    "applies_its_own_way",
    "autocast",
    "build",
    "call",
    "calls_on",
    "calls_replaced",
    "check_compiled",
    "clip_gradients",
    "compilation",
    "compute_loss",
    "concatenated",
    "config_without_rate",
    "decays",
    "detach_from_strategy",
    "finalize",
    "flatten_metrics",
    "forget_rows",
    "handles_are",
    "has_plain_metrics",
    "initial_epoch",
    "initializer_of",
    "initializer_of_part",
    "intercepted",
    "is_built",
    "is_keras_metric",
    "layers_of",
    "learning_rate_of",
    "mask_of",
    "merged",
    "metrics_of",
    "moving_averages",
    "nested",
    "optimizers_of",
    "overrides",
    "owners",
    "path",
    "pythonify_logs",
    "require_known",
    "seed_states",
    "set_mask",
    "settings_of",
    "should_evaluate",
    "slot_names",
    "slots_of",
    "split_validation",
    "stateful_layers",
    "stateless_scope",
    "to_floats",
    "unbuild",
    "unchanged_variables",
    "uninitialized",
    "unpack_batch",
    "update_count",
    "variant",
    "watched_when_read",
    "with_rate_times",
]

split_validation = array_slicing.train_validation_split
unpack_batch = data_adapter_utils.unpack_x_y_sample_weight
mask_of, set_mask = get_keras_mask, set_keras_mask
stateless_scope = get_stateless_scope


def detach_from_strategy(model: keras.Model) -> None:
    """Makes a model that was built in a strategy's scope an ordinary model.

    Keras remembers the strategy and would run the model's own `predict` or `evaluate` through it.
    The model's own `fit` warns once that it trains on the chief alone.
    """
    model._distribute_strategy = None
    # Functions that were traced in the scope know the strategy.
    model.train_function = model.test_function = model.predict_function = None
    # `setattr` would have Keras look for something to track.
    vars(model)["make_train_function"] = functools.partial(_make_warned_train_function, model)
    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None:
        optimizer._distribution_strategy = tf.distribute.get_strategy()
        optimizer = getattr(optimizer, "inner_optimizer", None)


def _make_warned_train_function(model: keras.Model, force: bool = False) -> Any:
    del vars(model)["make_train_function"]
    warnings.warn(
        f"{model.name} trains on the chief alone, without the workers; call the fit of its "
        "tfps.Trainer instead, or ignore this if the chief is meant",
        stacklevel=4,
    )
    return model.make_train_function(force)


def initializer_of(initial_value: Any) -> tuple[keras.Variable, Any] | None:
    """Finds the Keras variable that is just being made, and its initializer.

    Args:
      initial_value: what `tf.Variable` was given. Keras gives it a function that calls the
        initializer for the whole shape.

    Returns:
      (variable, initializer), or None if Keras did not make `initial_value`.
    """
    cells = inspect.getclosurevars(initial_value).nonlocals if callable(initial_value) else {}
    return (cells["self"], cells["initializer"]) if {"self", "initializer"} <= set(cells) else None


def initializer_of_part(
    initializer: Any, shape: tuple[int, ...], part_shape: tuple[int, ...], index: int
) -> Any | None:
    """Makes an initializer that gives a part of a variable the distribution of the whole.

    Args:
      initializer: the initializer of the whole.
      shape, part_shape: the shapes of the whole and of the part.
      index: the index of the part. With a fixed seed, each part draws different numbers.

    Returns:
      An initializer, or None if the values of the part depend on the whole.
    """
    if isinstance(initializer, keras.initializers.VarianceScaling):
        whole, part = compute_fans(shape), compute_fans(part_shape)
        chosen = {"fan_in": lambda f: f[0], "fan_out": lambda f: f[1], "fan_avg": sum}
        fan = chosen[initializer.mode]
        return keras.initializers.VarianceScaling(
            initializer.scale * fan(part) / fan(whole),
            initializer.mode,
            initializer.distribution,
            _seed_of_part(initializer.seed, index),
        )
    random = (
        keras.initializers.RandomNormal,
        keras.initializers.RandomUniform,
        keras.initializers.TruncatedNormal,
    )
    if isinstance(initializer, random):
        config = {**initializer.get_config(), "seed": _seed_of_part(initializer.seed, index)}
        return type(initializer).from_config(config)
    alike = (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant)
    return initializer if isinstance(initializer, alike) else None


def _seed_of_part(seed: Any, index: int) -> Any:
    return seed + index if isinstance(seed, int) else seed


def build(model: keras.Model, batch_spec: Any, targets: bool) -> None:
    """Creates the variables of the model for batches of this spec.

    The optimizer stays unbuilt, since its state belongs on the servers.

    Args:
      model: the model to build. A model that is built already is left alone.
      batch_spec: nested specs of a batch.
      targets: whether the batch has targets, so that loss and metrics can be built as well.
    """
    names = ["optimizer"] + ([] if targets else ["_compile_loss", "_compile_metrics"])
    # `setattr` would track the metrics a second time.
    attributes = vars(model)
    kept = {name: attributes.get(name) for name in names}
    attributes.update(dict.fromkeys(names))
    try:
        with _tf.functions_inlined():
            model._symbolic_build(data_batch=batch_spec)
    finally:
        attributes.update(kept)


def compilation(model: keras.Model) -> tuple:
    """Identifies the last call of `compile`: equal until the model is compiled anew."""
    optimizer = getattr(model, "optimizer", None)
    ways = model.jit_compile, model.run_eagerly
    return id(optimizer), id(model._compile_loss), id(model._compile_metrics), *ways


def check_compiled(model: keras.Model, method: str) -> None:
    """Raises Keras's own `ValueError` unless the model was compiled.

    Args:
      model: the model.
      method: the name of the method that needs a compiled model, for the message.
    """
    model._assert_compile_called(method)


def is_built(model: keras.Model) -> bool:
    """Whether nothing of the model is left to be created when a batch arrives."""
    parts = [model._compile_loss, model._compile_metrics]
    layers = all(layer.built for layer in model._flatten_layers())
    return layers and all(part is None or part.built for part in parts)


def overrides(model: keras.Model, method: str) -> bool:
    """Whether the model has a method of its own in place of Keras's."""
    return method in vars(model) or getattr(type(model), method) is not getattr(keras.Model, method)


def applies_its_own_way(optimizer: keras.optimizers.Optimizer | None) -> bool:
    """Whether the optimizer's class overrides `apply_gradients`, which only a step calls."""
    own = getattr(type(optimizer), "apply_gradients", BaseOptimizer.apply_gradients)
    return own is not BaseOptimizer.apply_gradients


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """All optimizers that are attributes of the model, alone or in lists, tuples and dicts."""
    candidates: list[Any] = []
    for value in vars(model).values():
        if isinstance(value, dict):
            candidates += value.values()
        elif isinstance(value, list | tuple):
            candidates += value
        else:
            candidates.append(value)
    return list({id(c): c for c in candidates if isinstance(c, BaseOptimizer)}.values())


@contextlib.contextmanager
def unchanged_variables() -> Iterator[None]:
    """Lets assignments to Keras variables by this thread have no effect."""
    thread, original = threading.get_ident(), keras.Variable._direct_assign

    def assign(variable, value):
        if threading.get_ident() != thread:
            original(variable, value)

    with _tf.patching:
        keras.Variable._direct_assign = assign
        try:
            yield
        finally:
            keras.Variable._direct_assign = original


def watched_when_read(variable: keras.Variable) -> bool:
    """Whether a `tf.GradientTape` watches the variable as soon as it is read.

    That is settled when the variable is created; to freeze a layer does not change it.
    """
    created = vars(variable).get("_value")  # `getattr` would count as a look at the value.
    floating = tf.as_dtype(variable._dtype).is_floating
    return floating and getattr(created, "trainable", variable.trainable)


@contextlib.contextmanager
def handles_are(tensors: Mapping[int, tf.Tensor]) -> Iterator[None]:
    """Lets TensorFlow take tensors for Keras variables of which gradients are asked.

    TensorFlow differentiates for a variable's `handle`. In a stateless scope a variable has none.

    Args:
      tensors: `id` of a variable -> the tensor that stands for it on this thread.
    """
    thread, original = threading.get_ident(), keras.Variable.handle

    def handle(variable):
        tensor = tensors.get(id(variable)) if threading.get_ident() == thread else None
        return original.__get__(variable) if tensor is None else tensor

    with _tf.patching:
        keras.Variable.handle = property(handle)
        try:
            yield
        finally:
            keras.Variable.handle = original


@contextlib.contextmanager
def intercepted(
    apply: Callable[[keras.optimizers.Optimizer, Sequence[Any], Sequence[Any]], None],
    scale_loss: Callable[[keras.optimizers.Optimizer, tf.Tensor], tf.Tensor],
) -> Iterator[None]:
    """Calls functions in place of `apply` and `scale_loss` of all optimizers, on this thread.

    Args:
      apply: of an optimizer, gradients and variables.
      scale_loss: of an optimizer and a loss.
    """
    thread = threading.get_ident()

    def instead(original, function):
        def method(self, *args, **kwargs):
            here = threading.get_ident() == thread
            return (function if here else original)(self, *args, **kwargs)

        return method

    def applied(optimizer, grads, trainable_variables=None):
        if trainable_variables is None:
            if not optimizer.built:
                raise ValueError(
                    "apply was given gradients without variables, but the optimizer is not built; "
                    "give it the variables, or call optimizer.build(variables) before"
                )
            trainable_variables = optimizer._trainable_variables
        apply(optimizer, grads, trainable_variables)

    def scaled(optimizer, loss):
        return scale_loss(optimizer, loss)

    with _tf.patching:
        patched = [
            (cls, name, vars(cls)[name], function)
            for cls in _with_subclasses(BaseOptimizer)
            for name, function in (("apply", applied), ("scale_loss", scaled))
            if name in vars(cls)
        ]
        for cls, name, original, function in patched:
            setattr(cls, name, instead(original, function))
        try:
            yield
        finally:
            for cls, name, original, _ in patched:
                setattr(cls, name, original)


def _with_subclasses(cls: type) -> list[type]:
    """A class and all of its subclasses, each once."""
    found, todo = [], [cls]
    while todo:
        one = todo.pop()
        if one not in found:
            found.append(one)
            todo += one.__subclasses__()
    return found


def call(model: keras.Model, x: Any, training: bool) -> Any:
    """Runs the forward pass, with `training` if the model's `call` takes the argument."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


@contextlib.contextmanager
def calls_replaced(layer: keras.Layer, instead: Callable[..., Any]) -> Iterator[None]:
    """A context in which a layer's `call` is another function.

    What Keras does around `call` (it converts arguments, finds masks, opens scopes) is done once.

    Args:
      layer: a layer or a model.
      instead: called with the layer's own `call` before the arguments.
    """
    attributes = vars(layer)  # `setattr` would have Keras look for something to track.
    before, original = attributes.get("call"), layer.call
    attributes["call"] = functools.partial(instead, original)
    try:
        yield
    finally:
        if before is None:
            del attributes["call"]
        else:
            attributes["call"] = before


@contextlib.contextmanager
def calls_on(model: keras.Model, devices: Mapping[int, str]) -> Iterator[None]:
    """A context in which layers of a model run on devices.

    Args:
      model: the model.
      devices: `id` of a layer -> its device. The layers inside of it run there too, unless they
        have devices of their own.
    """

    def instead(device: str, original: Callable, *args: Any, **kwargs: Any) -> Any:
        with tf.device(device):
            return original(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for layer in layers_of(model):
            if id(layer) in devices:
                placed = functools.partial(instead, devices[id(layer)])
                stack.enter_context(calls_replaced(layer, placed))
        yield


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """All layers of a model, also those inside of others, each once."""
    return list({id(one): one for one in model._flatten_layers(include_self=False)}.values())


def stateful_layers(model: keras.Model) -> list[str]:
    """The names of layers that keep a state of the batch's shape (`stateful=True` of an RNN)."""
    return [layer.name for layer in layers_of(model) if getattr(layer, "stateful", False) is True]


def compute_loss(
    model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
) -> tf.Tensor:
    """The loss of a batch, a scalar; for the arguments see `keras.Model.compute_loss`."""
    return model._compute_loss(x, y, y_pred, sample_weight, training=training)


def autocast(variable: keras.Variable, value: tf.Tensor) -> tf.Tensor:
    """Casts a part of the variable's value to the dtype in which the present layer computes."""
    return variable._maybe_autocast(value)


def add_metrics(
    model: keras.Model, loss: tf.Tensor, x: Any, y: Any, y_pred: Any, sample_weight: Any
) -> None:
    """Updates the mean loss and the compiled metrics with one batch."""
    if model._loss_tracker is not None:
        first = next(t for t in tf.nest.flatten(x) if t is not None)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(first)[0])
    model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def metrics_of(model: keras.Model) -> list[keras.Metric]:
    """The metrics of a built model: the mean loss, those it was compiled with, those of layers."""
    found: list[keras.Metric] = []
    for metric in model.metrics:
        found += metric.metrics if isinstance(metric, CompileMetrics) else [metric]
    return found


def has_plain_metrics(model: keras.Model) -> bool:
    """Whether all metrics are classes of Keras, and nothing but Keras's own steps updates them."""
    own = any(overrides(model, name) for name in _METRIC_METHODS)
    layers = model._flatten_layers(include_self=True)
    tracked = any(isinstance(one, keras.Layer) and one._metrics for one in layers)
    return all(map(is_keras_metric, metrics_of(model))) and not own and not tracked


def is_keras_metric(metric: keras.Metric) -> bool:
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


def forget_rows(variable: keras.Variable) -> None:
    """Lets tensors with any number of rows take the variable's place in a stateless scope."""
    variable._shape = (None, *variable._shape[1:])


def flatten_metrics(model: keras.Model, logs: dict[str, float]) -> float | list[float]:
    """What `keras.Model.evaluate` returns for these logs without `return_dict`."""
    return model._flatten_metrics_in_order(logs)


def concatenated(outputs: Sequence[Any]) -> Any:
    """The outputs of several batches as one.

    Args:
      outputs: for each batch, nested tensors, dense, sparse or ragged, whose first dimension is the
        batch.

    Returns:
      What `keras.Model.predict` returns for them. In place of each tensor there is a NumPy array; a
      `tf.RaggedTensor` if shapes differ in another dimension than the first, or if the outputs are
      ragged; or a `tf.SparseTensor`.
    """

    def one(*parts: Any) -> Any:
        whole = potentially_ragged_concat(parts)
        return whole if isinstance(whole, (tf.RaggedTensor, tf.SparseTensor)) else whole.numpy()

    return keras.tree.map_structure(one, *outputs)


def should_evaluate(model: keras.Model, epoch: int, validation_freq: int | Sequence[int]) -> bool:
    """Whether `fit` validates after this epoch, which counts from 0."""
    return BaseTrainer._should_eval(model, epoch, validation_freq)


def initial_epoch(model: keras.Model, initial: int) -> int:
    """The epoch to begin with: `initial`, unless BackupAndRestore set an epoch on the model."""
    return getattr(model, "_initial_epoch", None) or initial


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of all random generators that a call of the model may use."""
    weights = {id(v) for v in model.weights}
    states = [v for v in model.non_trainable_variables if id(v) not in weights]
    return [*states, global_seed_generator().state]


def clip_gradients(
    optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor | None]
) -> list[tf.Tensor | None]:
    """Clips by value, by norm or by global norm, as the optimizer is configured."""
    return optimizer._clip_gradients(gradients)


def adam_moments(
    optimizer: keras.optimizers.Adam, variable: keras.Variable
) -> tuple[keras.Variable, keras.Variable]:
    """The (first, second) moments of a variable that an Adam was built with."""
    i = optimizer._get_variable_index(variable)
    return optimizer._momentums[i], optimizer._velocities[i]


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Per variable of the optimizer, its moving average; empty without `use_ema`."""
    return list(optimizer._model_variables_moving_average) if optimizer.use_ema else []


def finalize(model: keras.Model) -> None:
    """Lets an optimizer that ends training in a way of its own do so, as Keras does after `fit`.

    Moving averages (`use_ema`) are not its own way: the servers install them.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    own = getattr(type(optimizer), "finalize_variable_values", None)
    if own not in (None, BaseOptimizer.finalize_variable_values):
        optimizer.finalize_variable_values(model.trainable_weights)


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether the optimizer's weight decay applies to the variable."""
    return bool(optimizer.weight_decay) and optimizer._use_weight_decay(variable.value)


def update_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The variable that counts calls of `apply`, an int scalar.

    The optimizer's `iterations` is less where it accumulates the gradients of several calls.
    """
    return optimizer._iterations


def settings_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables of an optimizer that exist before it is built: its count and its rate."""
    one = getattr(optimizer, "inner_optimizer", optimizer)
    own = (one._iterations, one._learning_rate)
    return [v for v in own if isinstance(v, keras.Variable)]


def slot_names(optimizer: keras.optimizers.Optimizer) -> list[tuple[int | None, str]]:
    """Names each of a built optimizer's variables, and says to what the variable belongs.

    Keras's own names do not tell the two moments of Adafactor apart. So a name is that of the
    attribute in which the optimizer keeps the variable, alone or in a list with an entry for each
    model variable.

    Returns:
      In the order of `variables`: (index of the model variable, or None for a variable that
      belongs to none of them; name, such as "momentums").
    """
    built_for = len(optimizer._trainable_variables)
    found: dict[int, tuple[int | None, str]] = {}
    for attribute, value in vars(optimizer).items():
        name = attribute.lstrip("_")
        if isinstance(value, keras.Variable):
            found[id(value)] = None, name
        elif isinstance(value, list) and len(value) == built_for and name != "variables":
            found.update((id(v), (i, name)) for i, v in enumerate(value) if v is not None)
    return [found.get(id(v), (None, f"variable_{k}")) for k, v in enumerate(optimizer.variables)]


def slots_of(
    optimizer: keras.optimizers.Optimizer, alone: bool = False
) -> list[tuple[keras.Variable | None, str, keras.Variable]]:
    """The state of an optimizer, without the learning rate.

    Args:
      optimizer: built or not; not a `LossScaleOptimizer`.
      alone: whether the state of optimizers inside of it is left out.

    Returns:
      (model variable to which the state belongs, or None if it belongs to no single one; name of
      the state, see `slot_names`; the state).
    """
    built_for = list(optimizer._trainable_variables)
    own = {id(v) for v in optimizer._variables}
    named = zip(slot_names(optimizer), optimizer.variables, strict=True)
    return [
        (None if i is None else built_for[i], name, state)
        for (i, name), state in named
        if state is not optimizer._learning_rate and (not alone or id(state) in own)
    ]


def owners(
    optimizer: keras.optimizers.MultiOptimizer, variables: Sequence[keras.Variable]
) -> tuple[int, ...]:
    """Per variable, which of a built optimizer's `optimizers` updates it."""
    return tuple(optimizer._var_to_optimizer_idx[optimizer._var_key(v)] for v in variables)


def nested(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """An optimizer, and the optimizers inside of it (loss scaling, several optimizers)."""
    inside = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])]
    return [optimizer, *(n for one in inside if one is not None for n in nested(one))]


def require_known(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> None:
    """Raises Keras's own `ValueError` unless a built optimizer was built for all variables."""
    optimizer._check_variables_are_known(variables)


def unbuild(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes a built optimizer start afresh when it is built again: without slots, at step 0."""
    for one in nested(optimizer):
        for variable in one._variables[:]:
            if variable is not one._iterations and variable is not one._learning_rate:
                one._tracker.untrack(variable)
        one._iterations.assign(0)
        one.built = False


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
    """A context in which Keras variables are made without values, which no scope will give them."""
    waiting = global_state.get_global_attribute("uninitialized_variables", [], set_to_default=True)
    before = len(waiting)
    with keras.StatelessScope(initialize_variables=False):
        yield
    del waiting[before:]


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """The optimizer's learning rate: a variable, a schedule or a callable."""
    return optimizer._learning_rate


def config_without_rate(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """The optimizer's `get_config`, in which the learning rate means nothing.

    A schedule without a `get_config` of its own, which Keras trains with but cannot save, is no
    error here.
    """
    return variant(optimizer, _learning_rate=0.0).get_config()


def variant(optimizer: keras.optimizers.Optimizer, **attributes: Any) -> keras.optimizers.Optimizer:
    """Makes an optimizer with the same variables and other attributes; leaves `optimizer` alone.

    Args:
      optimizer: A built optimizer.
      **attributes: what the variant has in place of the optimizer's own attributes.
    """
    # `copy.copy` would write the optimizer into a file and read it back.
    other = object.__new__(type(optimizer))
    vars(other).update(vars(optimizer), **attributes)
    return other


def with_rate_times(
    optimizer: keras.optimizers.Optimizer, scale: tf.Tensor
) -> keras.optimizers.Optimizer:
    """Makes a `variant` of an optimizer that multiplies the rate of its schedule by `scale`."""
    return variant(optimizer, _learning_rate=_Scaled(optimizer._learning_rate, scale))


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, schedule, scale):
        self._schedule, self._scale = schedule, scale

    def __call__(self, step):
        return self._schedule(step) * self._scale

    def get_config(self):
        return {}


@contextlib.contextmanager
def path(name: str) -> Iterator[str]:
    """A context in which a variable that is created gets the path `name`, slashes included.

    Yields:
      The last component of the path, to be given as the variable's name.
    """
    *scopes, last = name.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        yield last
