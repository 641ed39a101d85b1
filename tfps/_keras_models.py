"""A Keras model and its own training loop: private names of Keras, as of Keras 3.15."""

import functools
import random
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import potentially_ragged_concat
from keras.src.export.export_utils import get_input_signature, make_tf_tensor_spec
from keras.src.random.seed_generator import global_seed_generator
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.trainers.trainer import Trainer as BaseTrainer

from tfps import _tf_tracing, errors

__all__ = [
    "EpochIterator",
    "batch_weights",
    "build",
    "call",
    "call_with",
    "check_compiled",
    "compilation",
    "compute_loss",
    "concatenated",
    "detach_from_strategy",
    "initial_epoch",
    "input_signature",
    "is_built",
    "overrides",
    "resources",
    "seed_states",
    "should_evaluate",
    "skip_batches",
    "split_validation",
    "unpack_batch",
]

split_validation = array_slicing.train_validation_split


unpack_batch = data_adapter_utils.unpack_x_y_sample_weight


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


def batch_weights(y: Any, sample_weight: Any, class_weight: dict[int, float] | None) -> Any:
    """The weights of a batch's examples: those given, or those of their classes.

    Raises:
      ValueError: as in Keras, if both are given.
    """
    if class_weight is None:
        return sample_weight
    if sample_weight is not None:
        raise ValueError(
            "Arguments `sample_weight` and `class_weight` cannot be specified at the same time. "
            f"Received: sample_weight={sample_weight}, class_weight={class_weight}"
        )
    return data_adapter_utils.class_weight_to_sample_weights(y, class_weight)


def build(model: keras.Model, batch_spec: Any, targets: bool) -> None:
    """Creates the variables of the model for batches of this spec.

    The optimizer stays unbuilt, since its state belongs on the servers.

    Args:
      model: the model to build. A model that is built already is left alone.
      batch_spec: nested specs of a batch.
      targets: whether the batch has targets, so that loss and metrics can be built as well.
    """
    names = [] if targets else ["_compile_loss", "_compile_metrics"]
    if not hasattr(model, "optimizer"):  # It was not compiled.
        names.append("optimizer")
    # `setattr` would track the metrics a second time.
    attributes = vars(model)
    kept = {name: attributes.get(name) for name in names}
    attributes.update(dict.fromkeys(names))
    # A metric may look at the optimizer, so the model has to have it.
    optimizer = getattr(model, "optimizer", None)
    optimizer_is_built = getattr(optimizer, "built", True)
    if optimizer is not None:
        optimizer.built = True
    layers_are_built = all(layer.built for layer in model._flatten_layers())
    try:
        with _tf_tracing.functions_inlined(), warnings.catch_warnings():
            if layers_are_built:
                # What their code warns of now, it will warn of when the step is traced.
                warnings.simplefilter("ignore")
            model._symbolic_build(data_batch=batch_spec)
    finally:
        attributes.update(kept)
        if optimizer is not None:
            optimizer.built = optimizer_is_built


def compilation(model: keras.Model) -> tuple:
    """Identifies the last call of `compile`: equal until the model is compiled anew.

    It holds what `compile` has made, since another object might have the `id` of what is gone.
    """
    optimizer = getattr(model, "optimizer", None)
    ways = model.jit_compile, model.run_eagerly
    return optimizer, model._compile_loss, model._compile_metrics, *ways


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


def call(model: keras.Model, x: Any, training: bool) -> Any:
    """Runs the forward pass, with `training` if the model's `call` takes the argument."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


def call_with(model: keras.Model, inputs: Sequence[Any]) -> Any:
    """Runs the forward pass of prediction on the positional arguments of the model's call."""
    return model(*inputs, training=False) if model._call_has_training_arg else model(*inputs)


def input_signature(model: keras.Model) -> list[Any]:
    """Nested `tf.TensorSpec`s of the positional arguments of a built model's call.

    Raises:
      ConfigError: Keras does not know them.
    """
    try:
        return list(keras.tree.map_structure(make_tf_tensor_spec, get_input_signature(model)))
    except (TypeError, ValueError) as e:
        raise errors.ConfigError(
            f"the inputs of {model.name} are not known ({e}); give input_signature="
        ) from e


def resources(model: keras.Model) -> list[Any]:
    """The lookup tables, and what else TensorFlow saves beside variables, of a model's layers."""
    kind = tf.saved_model.experimental.TrackableResource
    values = [value for layer in model._flatten_layers() for value in vars(layer).values()]
    return list({id(value): value for value in values if isinstance(value, kind)}.values())


def compute_loss(
    model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
) -> tf.Tensor:
    """The loss of a batch, a scalar; for the arguments see `keras.Model.compute_loss`."""
    return model._compute_loss(x, y, y_pred, sample_weight, training=training)


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


def skip_batches(callback: keras.callbacks.TensorBoard, count: int) -> None:
    """Lets the steps of a TensorBoard callback, whose training has begun, go on from a count."""
    callback._global_train_batch = count


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of all random generators that a call of the model may use.

    Keras makes its global generator when it is first used, with a seed of Python's `random`. A
    program's own numbers of `random` must not depend on it being made here.
    """
    before = random.getstate()
    generator = global_seed_generator()
    random.setstate(before)
    weights = {id(v) for v in model.weights}
    states = [v for v in model.non_trainable_variables if id(v) not in weights]
    return [*states, generator.state]
