"""How the values of rows are kept: as they are, rounded to bfloat16, or as bytes with a scale."""

from collections.abc import Sequence

import tensorflow as tf


def variables_of(row_dtype: str, width: int) -> list[tuple[tuple[int, ...], tf.DType]]:
    """(shape of a row, dtype) of each variable that keeps rows."""
    if row_dtype == "int8":
        return [((width,), tf.int8), ((1,), tf.float32)]
    return [((width,), tf.as_dtype(row_dtype))]


def decoded(kept: Sequence[tf.Tensor], row_dtype: str) -> tf.Tensor:
    """float32 [n, width]: rows.

    Args:
      kept: what the variables of `variables_of` have of these rows.
      row_dtype: see `TableSettings`.
    """
    if row_dtype == "int8":
        return tf.cast(kept[0], tf.float32) * kept[1]
    return tf.cast(kept[0], tf.float32)


def encoded(rows: tf.Tensor, row_dtype: str, seed: tf.Tensor) -> list[tf.Tensor]:
    """What the variables of `variables_of` are to have of these rows.

    Rounding is stochastic, so that small updates are not all lost: the expectation of what is kept
    is the row. A row of int8 has the scale with which its largest element becomes 127.

    Args:
      rows: float32 [n, width].
      row_dtype: see `TableSettings`.
      seed: int64 scalar, another one for each update.
    """
    if row_dtype == "float32":
        return [rows]
    seeds = tf.stack([seed, tf.constant(0, tf.int64)])
    if row_dtype == "int8":
        scale = tf.reduce_max(tf.abs(rows), axis=1, keepdims=True) / 127
        steps = tf.math.divide_no_nan(rows, scale)
        noise = tf.random.stateless_uniform(tf.shape(rows), seeds)
        codes = tf.clip_by_value(tf.floor(steps + noise), -127, 127)
        return [tf.cast(codes, tf.int8), scale]
    noise = tf.random.stateless_uniform(tf.shape(rows), seeds, 0, 1 << 16, tf.int32)
    bits = tf.bitwise.right_shift(tf.bitcast(rows, tf.int32) + noise, 16)
    # What would overflow, and what is no number, is rounded to the nearest.
    finite = tf.abs(rows) < 3e38
    rough = tf.bitcast(tf.cast(tf.bitwise.bitwise_and(bits, 0xFFFF), tf.uint16), tf.bfloat16)
    return [tf.where(finite, rough, tf.cast(rows, tf.bfloat16))]
