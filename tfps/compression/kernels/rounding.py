"""Rounding rows of floats to eight bits."""

import functools

import tensorflow as tf

from tfps import errors
from tfps.compression.kernels import hashing

MODES = ("nearest", "stochastic")

# Below this the reciprocal of a scale would overflow; such rows are zero.
TINY = 1e-30


def require_mode(rounding: str) -> None:
    """Raises `ConfigError` unless the mode exists."""
    if rounding not in MODES:
        raise errors.ConfigError(
            f"rounding={rounding!r} is not a way to round; use one of {', '.join(MODES)}"
        )


def across(rows: tf.Tensor, combine) -> tf.Tensor:
    """Combines each row's eighths element by element: [m, width] to [m, width / 8].

    Reductions along rows are calls of their own that XLA does not fuse with what
    makes their input. This is elementwise, and leaves little for them to do.
    """
    width = rows.shape[1]
    if not width or width % 8:
        return rows
    return functools.reduce(combine, tf.split(rows, 8, 1))


def peak(rows: tf.Tensor) -> tf.Tensor:
    """float32 [m]: the largest magnitude of each row."""
    return tf.reduce_max(across(tf.abs(rows), tf.maximum), 1)


def to_int8(rows: tf.Tensor, seed: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Multiples of a 127th of each row's largest magnitude.

    Args:
      rows: float32 [m, width].
      seed: int32[2] to round up or down at random with the right expectation;
        None rounds to nearest.

    Returns:
      (int8 [m, width], float32 [m]): their product is the row. The scale of a
      row with a non-finite element is not finite.
    """
    largest = peak(rows)
    inverse = tf.where(largest > TINY, 127.0 / largest, 0.0)
    scaled = rows * inverse[:, None]
    if seed is None:
        scaled = tf.round(scaled)
    else:
        shape = tuple(rows.shape) if rows.shape.is_fully_defined() else tf.shape(rows)
        scaled = tf.floor(scaled + hashing.uniform(seed, shape))
    # The clip is for the last bit of 127 / largest * largest.
    return tf.cast(tf.clip_by_value(scaled, -127.0, 127.0), tf.int8), largest / 127.0
