"""The rows that keys begin with: each is a function of the seed and the key, and of nothing else.

So every server, and a process without servers, begins a key with the same row, in whatever order
keys are met, and a row need not be kept to be read.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfps import errors
from tfps.embeddings import keys as keys_

_STEP = 0x9E3779B97F4A7C15
_UNIT = 2.0**-24


class InitialRows(NamedTuple):
    """How rows begin.

    Attributes:
      kind: "uniform", "normal", "truncated" or "constant".
      low, high: the bounds of "uniform", mean and deviation of the others; of "constant" `low` is
        the value.
      seed: an integer of 32 bits.
    """

    kind: str
    low: float
    high: float
    seed: int

    @classmethod
    def of(cls, initializer: Any, seed: int | None) -> "InitialRows":
        """Reads a Keras initializer.

        Args:
          initializer: a `keras.initializers.Initializer`, its name or its configuration.
          seed: used if the initializer has none that is an integer; None for 0.

        Raises:
          ConfigError: rows of this initializer cannot be made one by one.
        """
        made = keras.initializers.get(initializer)
        own = getattr(made, "seed", None)
        seed = int(own if isinstance(own, int) and seed is None else seed or 0) & 0xFFFFFFFF
        kinds = {
            keras.initializers.RandomUniform: ("uniform", "minval", "maxval"),
            keras.initializers.RandomNormal: ("normal", "mean", "stddev"),
            keras.initializers.TruncatedNormal: ("truncated", "mean", "stddev"),
            keras.initializers.Constant: ("constant", "value", "value"),
        }
        if type(made) in kinds:
            kind, low, high = kinds[type(made)]
            return cls(kind, float(getattr(made, low)), float(getattr(made, high)), seed)
        if isinstance(made, keras.initializers.Zeros | keras.initializers.Ones):
            value = float(isinstance(made, keras.initializers.Ones))
            return cls("constant", value, value, seed)
        raise errors.ConfigError(
            f"initializer={made!r} does not make rows one by one; use RandomUniform, RandomNormal, "
            "TruncatedNormal, Zeros, Ones or Constant"
        )

    def rows(self, keys: tf.Tensor, width: int) -> tf.Tensor:
        """float32 [n, width]: the first rows of keys.

        Args:
          keys: int64 [n].
          width: of a row.
        """
        if self.kind == "constant":
            return tf.fill(tf.stack([tf.size(keys), width]), tf.constant(self.low, tf.float32))
        unit = self._units(keys, width)
        if self.kind == "uniform":
            return self.low + (self.high - self.low) * unit
        if self.kind == "truncated":  # At two standard deviations, as in Keras.
            outside = 0.5 * math.erfc(math.sqrt(2.0))
            unit = outside + (1 - 2 * outside) * unit
        return self.low + self.high * math.sqrt(2.0) * tf.math.erfinv(2 * unit - 1)

    def _units(self, keys: tf.Tensor, width: int) -> tf.Tensor:
        """float32 [n, width] in (0, 1), 24 bits each: a counter-based generator, as SplitMix64."""
        first = (self.seed * _STEP) & ((1 << 64) - 1)
        steps = [(first + (j + 1) * _STEP) & ((1 << 64) - 1) for j in range(width)]
        counters = tf.bitcast(keys, tf.uint64)[:, None] + tf.constant(np.array([steps], np.uint64))
        bits = tf.bitwise.right_shift(keys_.mixed(counters), tf.constant(np.uint64(40)))
        return (tf.cast(bits, tf.float32) + 0.5) * _UNIT
