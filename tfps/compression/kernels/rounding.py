"""Rounding rows of floats to eight bits."""

import functools
from collections.abc import Callable

import tensorflow as tf

from tfps import errors
from tfps.compression.kernels import hashing

MODES = ("nearest", "stochastic")

# The reciprocal of a smaller scale would overflow, so rows with a smaller scale become zero.
TINY = 1e-30


def require_mode(rounding: str) -> None:
    """Raises `ConfigError` unless the mode exists."""
    if rounding not in MODES:
        raise errors.ConfigError(
            f"rounding={rounding!r} is not a way to round; use one of {', '.join(MODES)}"
        )


def across(rows: tf.Tensor, combine: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Combines the eight eighths of each row, element by element.

    XLA does not fuse a reduction along rows with what makes its input. This function is
    elementwise, so XLA fuses it, and it leaves an eighth of the work to the reduction.

    Args:
      rows: [m, width].
      combine: an associative elementwise function of two tensors.

    Returns:
      [m, width / 8], or `rows` if the width is not a multiple of 8.
    """
    width = rows.shape[1]
    if not width or width % 8:
        return rows
    return functools.reduce(combine, tf.split(rows, 8, 1))


def peak(rows: tf.Tensor) -> tf.Tensor:
    """float32 [m]: the largest magnitude of each row."""
    return tf.reduce_max(across(tf.abs(rows), tf.maximum), 1)


def to_int8(rows: tf.Tensor, seed: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Rounds to multiples of a 127th of each row's largest magnitude.

    Args:
      rows: float32 [m, width].
      seed: int32 [2] to round up or down at random with the right expectation; None rounds to
        nearest.

    Returns:
      (int8 [m, width], float32 [m]): The product of numbers and scale approximates the row. The
      scale of a row with a non-finite element is not finite.
    """
    largest = peak(rows)
    inverse = tf.where(largest > TINY, 127.0 / largest, 0.0)
    scaled = rows * inverse[:, None]
    if seed is None:
        scaled = tf.round(scaled)
    else:
        shape = tuple(rows.shape) if rows.shape.is_fully_defined() else tf.shape(rows)
        scaled = tf.floor(scaled + hashing.uniform(seed, shape))
    # `127 / largest * largest` may exceed 127 by its last bit.
    return tf.cast(tf.clip_by_value(scaled, -127.0, 127.0), tf.int8), largest / 127.0
