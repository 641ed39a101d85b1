"""What a call on a worker reports to the chief: one vector, as every tensor is a round trip."""

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class Tally(NamedTuple):
    """What steps did, besides metrics.

    Attributes:
      examples: in the batches.
      pushes: applied by the servers.
      staleness: of these pushes, summed.
      max_staleness: of one of these pushes.
      bytes_up, bytes_down: of tables' rows and ids.
    """

    examples: Any = 0.0
    pushes: Any = 0.0
    staleness: Any = 0.0
    max_staleness: Any = 0.0
    bytes_up: Any = 0.0
    bytes_down: Any = 0.0


class Report(NamedTuple):
    """What a call of `TrainStep` or `EvaluateStep` did.

    Attributes:
      steps: int, steps done.
      tally: `Tally` of floats.
      metrics: arrays, the change of each metric variable.
    """

    steps: int
    tally: Tally
    metrics: list[np.ndarray]

    @classmethod
    def of(cls, vector: tf.Tensor, initial: list[tf.Tensor]) -> "Report":
        """Reads the float64 vector that a step returned."""
        values = vector.numpy()
        offset = 1 + len(Tally._fields)
        tally = Tally(*values[1:offset].tolist())
        metrics = []
        for start in initial:
            size = math.prod(start.shape)
            value = values[offset : offset + size].reshape(start.shape)
            metrics.append(value - start.numpy().astype(np.float64))
            offset += size
        return cls(int(values[0]), tally, metrics)


def added(total: tf.Tensor, tally: Tally) -> tf.Tensor:
    """A float64 vector of totals, in the order of `Tally`, with one more tally in it."""
    new = tf.stack([tf.cast(t, tf.float64) for t in tally])
    is_max = [name == "max_staleness" for name in Tally._fields]
    return tf.where(is_max, tf.maximum(total, new), total + new)


def vector(steps, tally, metrics) -> tf.Tensor:
    """What `Report.of` reads, from a `Tally` or a vector of totals."""
    # float64 holds the float32 and int32 states of metrics exactly.
    if isinstance(tally, Tally):
        tally = tf.stack([tf.cast(t, tf.float64) for t in tally])
    parts = [tf.cast(steps, tf.float64)[None], tally]
    parts += [tf.reshape(tf.cast(m, tf.float64), [-1]) for m in metrics]
    return tf.concat(parts, 0)
