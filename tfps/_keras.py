"""The private names of Keras that tfps uses, as of Keras 3.15.

Nothing else in the package imports from `keras.src` or touches an underscore of
Keras.
"""

import contextlib
import gc
import inspect

import keras
import tensorflow as tf
from keras.src.initializers.random_initializers import compute_fans
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.random.seed_generator import global_seed_generator
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.trainers.trainer import Trainer as BaseTrainer
from keras.src.utils.python_utils import pythonify_logs

__all__ = [
    "BaseOptimizer",
    "EpochIterator",
    "adam_moments",
    "add_metrics",
    "autocast",
    "build",
    "call",
    "check_compiled",
    "clip_gradients",
    "compilation",
    "compute_loss",
    "decays",
    "detach_from_strategy",
    "flatten_metrics",
    "forget_rows",
    "initial_epoch",
    "initializer_of",
    "initializer_of_part",
    "learning_rate_of",
    "mark_remote",
    "overridden_steps",
    "path",
    "pythonify_logs",
    "rate_times",
    "seed_states",
    "set_iterations",
    "should_evaluate",
    "slot_names",
    "split_validation",
    "to_floats",
    "train_writer",
    "unpack_batch",
    "variables_survive",
]

split_validation = array_slicing.train_validation_split
unpack_batch = data_adapter_utils.unpack_x_y_sample_weight


def detach_from_strategy(model: keras.Model) -> None:
    """Makes a model that was built under a strategy's scope an ordinary one.

    Keras remembers the scope and would run the model's own `predict` or
    `evaluate` through the strategy.
    """
    model._distribute_strategy = None
    # Traced before the connection, they would hold variables that are no more.
    model.train_function = model.test_function = model.predict_function = None
    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None:
        optimizer._distribution_strategy = tf.distribute.get_strategy()
        optimizer = getattr(optimizer, "inner_optimizer", None)


@contextlib.contextmanager
def variables_survive():
    """Carries the values of all Keras variables of this process over a connection.

    When TensorFlow connects to a cluster, its local device gets another name and
    what lived on it is lost, silently in part. So models made earlier are given
    new variables with the old values.
    """
    kept = [
        (v, v.numpy())
        for v in gc.get_objects()
        if issubclass(type(v), keras.Variable)
        and v._value is not None
        and not getattr(v, "_is_remote", False)
        and not getattr(v._value, "is_remote", False)
    ]
    yield
    for variable, value in kept:
        identity = variable._value._unique_id
        variable._initialize(value)
        # By this, optimizers know the variables that they were built with.
        variable._value._unique_id = identity


def initializer_of(initial_value):
    """(variable, initializer) of a Keras variable that is just being made; None otherwise.

    Keras hands TensorFlow a function that calls the initializer for the whole shape.
    """
    cells = inspect.getclosurevars(initial_value).nonlocals if callable(initial_value) else {}
    return (cells["self"], cells["initializer"]) if {"self", "initializer"} <= set(cells) else None


def initializer_of_part(initializer, shape, part_shape, index: int):
    """An initializer that gives a part of a variable the distribution of the whole.

    Args:
      initializer: of the whole.
      shape, part_shape: of the whole and of the part.
      index: of the part; with a fixed seed, each part draws other numbers.

    Returns:
      An initializer, or None if the values depend on the whole.
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


def _seed_of_part(seed, index: int):
    return seed + index if isinstance(seed, int) else seed


def mark_remote(variables) -> None:
    """Says that these `keras.Variable`s live on servers and end with the connection.

    Nothing must touch one after that: TensorFlow would follow a pointer to a
    device that is gone.
    """
    for variable in variables:
        variable._is_remote = True


def build(model: keras.Model, batch_spec, targets: bool) -> None:
    """Creates the variables of the model for batches of this spec.

    The optimizer is left unbuilt: its state belongs on the servers.

    Args:
      model: to build; one that is built already is left alone.
      batch_spec: nested specs of a batch.
      targets: whether to build loss and metrics as well; the batch has targets.
    """
    names = ["optimizer"] + ([] if targets else ["_compile_loss", "_compile_metrics"])
    # Not by setattr, which would track the metrics a second time.
    attributes = vars(model)
    kept = {name: attributes.get(name) for name in names}
    attributes.update(dict.fromkeys(names))
    try:
        model._symbolic_build(data_batch=batch_spec)
    finally:
        attributes.update(kept)


def compilation(model: keras.Model) -> tuple:
    """Identifies the last call of `compile`; equal as long as nothing was compiled anew."""
    optimizer = getattr(model, "optimizer", None)
    return id(optimizer), id(model._compile_loss), id(model._compile_metrics), model.jit_compile


def check_compiled(model: keras.Model, method: str) -> None:
    model._assert_compile_called(method)


def overridden_steps(model: keras.Model) -> list[str]:
    """Which of Keras's step methods the model replaces."""
    steps = ("train_step", "test_step", "predict_step")
    return [s for s in steps if getattr(type(model), s) is not getattr(keras.Model, s)]


def call(model: keras.Model, x, training: bool):
    return model(x, training=training) if model._call_has_training_arg else model(x)


def compute_loss(model: keras.Model, x, y, y_pred, sample_weight, training: bool):
    return model._compute_loss(x, y, y_pred, sample_weight, training=training)


def autocast(variable: keras.Variable, value: tf.Tensor) -> tf.Tensor:
    """A part of the variable's value in the dtype in which a layer now computes."""
    return variable._maybe_autocast(value)


def add_metrics(model: keras.Model, loss, x, y, y_pred, sample_weight) -> None:
    """Updates the loss tracker and the compiled metrics with one batch."""
    if model._loss_tracker is not None:
        first = next(t for t in tf.nest.flatten(x) if t is not None)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(first)[0])
    model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def to_floats(logs: dict) -> dict:
    """Tensors of `get_metrics_result` as Python floats."""
    return pythonify_logs(logs)


def forget_rows(variable: keras.Variable) -> None:
    """Lets tensors of any number of rows stand for this variable in a stateless scope."""
    variable._shape = (None, *variable._shape[1:])


def flatten_metrics(model: keras.Model, logs: dict):
    return model._flatten_metrics_in_order(logs)


def should_evaluate(model: keras.Model, epoch: int, validation_freq) -> bool:
    return BaseTrainer._should_eval(model, epoch, validation_freq)


def initial_epoch(model: keras.Model, initial: int) -> int:
    """The epoch to begin with; BackupAndRestore sets another one on the model."""
    return getattr(model, "_initial_epoch", None) or initial


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of all random generators that a call of the model may draw from."""
    weights = {id(v) for v in model.weights}
    states = [v for v in model.non_trainable_variables if id(v) not in weights]
    return [*states, global_seed_generator().state]


def clip_gradients(optimizer: keras.optimizers.Optimizer, gradients: list) -> list:
    """Clips by value, by norm or by global norm, as the optimizer is configured."""
    return optimizer._clip_gradients(gradients)


def adam_moments(optimizer: keras.optimizers.Adam, variable) -> tuple:
    """The variables of (first, second) moments of one that an Adam was built with."""
    i = optimizer._get_variable_index(variable)
    return optimizer._momentums[i], optimizer._velocities[i]


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether the optimizer's weight decay applies to the variable."""
    return bool(optimizer.weight_decay) and optimizer._use_weight_decay(variable.value)


def set_iterations(optimizer: keras.optimizers.Optimizer, applied: int) -> None:
    """Makes the optimizer's `iterations` say how many updates were applied."""
    # Not through Keras's own `assign`, whose conversions cost more than the rest
    # of what the chief does for a step.
    getattr(optimizer, "inner_optimizer", optimizer)._iterations.value.assign(applied)


def slot_names(optimizer: keras.optimizers.Optimizer) -> list[tuple[int | None, str]]:
    """For each of a built optimizer's variables, to what it belongs and its name.

    Keras's own names do not tell the two moments of Adafactor apart, so a name is that of the
    attribute in which the optimizer keeps the variable: by itself, or in a list with an entry for
    each model variable.

    Returns:
      (index of the model variable or None, name) of each, in the order of `variables`.
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


def learning_rate_of(optimizer: keras.optimizers.Optimizer):
    """What the optimizer was given: a variable, a schedule or a callable."""
    return optimizer._learning_rate


def train_writer(callback: keras.callbacks.TensorBoard):
    """The summary writer of a TensorBoard callback's training curves."""
    return callback._train_writer


@contextlib.contextmanager
def rate_times(optimizer: keras.optimizers.Optimizer, scale):
    """While it is entered, the optimizer's schedule gives its rate times `scale`, unless None."""
    schedule = optimizer._learning_rate
    if scale is not None:
        optimizer._learning_rate = _Scaled(schedule, scale)
    try:
        yield
    finally:
        optimizer._learning_rate = schedule


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, schedule, scale):
        self._schedule, self._scale = schedule, scale

    def __call__(self, step):
        return self._schedule(step) * self._scale

    def get_config(self):
        return {}


@contextlib.contextmanager
def path(name: str):
    """Variables created inside get the path `name`, slashes included.

    Yields the last component, to be given as the variable's name.
    """
    *scopes, last = name.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        yield last
