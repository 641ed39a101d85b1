"""How Keras variables are made, with which names, initializers and shapes.

Private names of Keras, as of Keras 3.15.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.initializers.random_initializers import compute_fans

__all__ = [
    "autocast",
    "forget_rows",
    "in_stateless_scope",
    "initializer_of",
    "initializer_of_part",
    "path",
    "uninitialized",
]


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


def autocast(variable: keras.Variable, value: tf.Tensor) -> tf.Tensor:
    """Casts a part of the variable's value to the dtype in which the present layer computes."""
    return variable._maybe_autocast(value)


def forget_rows(variable: keras.Variable) -> None:
    """Lets tensors with any number of rows take the variable's place in a stateless scope."""
    variable._shape = (None, *variable._shape[1:])


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
    """A context in which Keras variables are made without values, which no scope will give them."""
    waiting = global_state.get_global_attribute("uninitialized_variables", [], set_to_default=True)
    before = len(waiting)
    with keras.StatelessScope(initialize_variables=False):
        yield
    del waiting[before:]


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
