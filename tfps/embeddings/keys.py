"""Ids as keys: every id becomes an int64 whose bits are mixed.

TensorFlow's hash table takes an int64 key as its own hash, and ids that follow one another, or
are multiples of something, would collide. The mixing is a bijection, so ids never share a key,
with the exception of the two that the hash table cannot take.
"""

import numpy as np
import tensorflow as tf

from tfps import errors

_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_STEP = 0x9E3779B97F4A7C15
_BITS = (1 << 64) - 1
_SHIFTS = (30, 27, 31)


def mixed(x: tf.Tensor) -> tf.Tensor:
    """uint64 tensor: a bijection of another one that spreads what its bits say over all bits.

    It is the last step of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014).

    Args:
      x: uint64, of any shape.
    """
    x = _xored(x, _SHIFTS[0]) * _constant(_FIRST)
    x = _xored(x, _SHIFTS[1]) * _constant(_SECOND)
    return _xored(x, _SHIFTS[2])


def key_of_id(i: int) -> int:
    """The key of one integer id, computed in Python."""
    x = (i + _STEP) & _BITS
    for shift, factor in zip(_SHIFTS, (_FIRST, _SECOND, 1), strict=True):
        x = ((x ^ (x >> shift)) * factor) & _BITS
    return x - (1 << 64) if x >> 63 else x


# The hash table marks places by two keys: those that are empty, and those of removed keys. They are
# the keys of the two smallest ids, which are taken for the two next to them.
EMPTY, REMOVED = key_of_id(-(1 << 63)), key_of_id(-(1 << 63) + 1)


def keys_of(ids: tf.Tensor) -> tf.Tensor:
    """int64 tensor of the shape of `ids`: their keys.

    Args:
      ids: integers of any value, or strings. The ids -2**63 and -2**63 + 1 are taken for -2**63 + 2
        and -2**63 + 3. A string is known by 63 bits of its fingerprint.

    Raises:
      ConfigError: the ids are neither integers nor strings.
    """
    require_ids(ids.dtype)
    if ids.dtype == tf.string:
        ids = tf.strings.to_hash_bucket_fast(ids, (1 << 63) - 1)
    elif ids.dtype == tf.uint64:
        ids = tf.bitcast(ids, tf.int64)
    ids = tf.cast(ids, tf.int64)
    smallest = tf.constant(-(1 << 63), tf.int64)
    ids = tf.where(ids < smallest + 2, ids + 2, ids)
    return tf.bitcast(mixed(tf.bitcast(ids, tf.uint64) + _constant(_STEP)), tf.int64)


def require_ids(dtype: tf.DType | str) -> None:
    """Refuses ids that are neither integers nor strings: float32 takes 2**24 + 1 for 2**24.

    Raises:
      ConfigError: they are.
    """
    dtype = tf.as_dtype(dtype)
    if dtype != tf.string and not dtype.is_integer:
        raise errors.ConfigError(
            f"ids are {dtype.name}, but must be integers or strings, because ids of a table that "
            "grows have any value; begin the model with keras.Input(shape, dtype='int64') (a "
            "Sequential model without an Input, and an Input without a dtype, make them float)"
        )


def ids_of(keys: np.ndarray) -> np.ndarray:
    """int64 [n]: the ids of these keys; the inverse of `keys_of` for integers."""
    x = np.asarray(keys, np.int64).view(np.uint64)
    inverses = [1, pow(_SECOND, -1, 1 << 64), pow(_FIRST, -1, 1 << 64)]
    with np.errstate(over="ignore"):
        for shift, inverse in zip(_SHIFTS[::-1], inverses, strict=True):
            x = x * np.uint64(inverse)
            x = x ^ (x >> np.uint64(shift)) ^ (x >> np.uint64(2 * shift))
        x = x - np.uint64(_STEP)
    return x.view(np.int64)


def _xored(x: tf.Tensor, shift: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _constant(shift)))


def _constant(value: int) -> tf.Tensor:
    return tf.constant(np.uint64(value))
