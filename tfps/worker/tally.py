"""What a call on a worker reports to the chief: one vector, as every tensor is a round trip."""

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps.store.push import Push, Receipt

# Pushes are counted by staleness; the last count is of all that missed as many or more.
STALENESSES = 64


class Tally(NamedTuple):
    """What steps did, besides metrics.

    Attributes:
      examples: in the batches.
      good: steps whose gradients did not overflow.
      pushes: that count: applied by the servers, or added to a round.
      updates: that the servers made.
      max_staleness: of one of these pushes.
      bytes_up, bytes_down: that workers sent and received, as the codecs predict.
      staleness: float64 [STALENESSES], pushes by the number of updates missed.
      total_staleness: of these pushes, summed.
    """

    examples: Any = 0.0
    good: Any = 0.0
    pushes: Any = 0.0
    updates: Any = 0.0
    max_staleness: Any = 0.0
    bytes_up: Any = 0.0
    bytes_down: Any = 0.0
    total_staleness: Any = 0.0
    staleness: Any = ()


_SCALARS = len(Tally._fields) - 1
SIZE = _SCALARS + STALENESSES
_MAX = Tally._fields.index("max_staleness")


class Report(NamedTuple):
    """What a call on a worker did.

    Attributes:
      steps: int, steps done.
      tally: `Tally` of floats and an array.
      metrics: arrays, the change of each metric variable.
      taken: int, batches taken from the source: those of the steps, or the next one.
    """

    steps: int
    tally: Tally
    metrics: list[np.ndarray]
    taken: int

    @classmethod
    def of(cls, vector: tf.Tensor, initial: list[tf.Tensor]) -> "Report":
        """Reads the float64 vector that a step returned."""
        values = vector.numpy()
        scalars, counts = np.split(values[2 : 2 + SIZE], [_SCALARS])
        tally = Tally(*scalars.tolist(), counts)
        offset = 2 + SIZE
        metrics = []
        for start in initial:
            size = math.prod(start.shape)
            value = values[offset : offset + size].reshape(start.shape)
            metrics.append(value - start.numpy().astype(np.float64))
            offset += size
        return cls(int(values[0]), tally, metrics, int(values[1]))

    def __add__(self, other: "Report") -> "Report":
        """Both together."""
        metrics = [a + b for a, b in zip(self.metrics, other.metrics, strict=True)]
        tally, taken = sum_of(self.tally, other.tally), self.taken + other.taken
        return Report(self.steps + other.steps, tally, metrics, taken)


def sum_of(one: Tally, other: Tally) -> Tally:
    """Two tallies of floats together; `staleness` may be ()."""
    most = max(one.max_staleness, other.max_staleness)
    total = Tally(*(a + b for a, b in zip(one, _full(other), strict=True)))
    return total._replace(max_staleness=most)


def nothing() -> Tally:
    """A tally of floats to add to."""
    return Tally(staleness=np.zeros(STALENESSES))


def zeros() -> tf.Tensor:
    """A vector of totals to add to, see `added`."""
    return tf.zeros([SIZE], tf.float64)


def added(total: tf.Tensor, tally: Tally) -> tf.Tensor:
    """A float64 vector of totals, in the order of `Tally`, with one more tally in it."""
    new = _flat(tally)
    is_max = [i == _MAX for i in range(SIZE)]
    return tf.where(is_max, tf.maximum(total, new), total + new)


def vector(steps, tally, metrics, taken=None) -> tf.Tensor:
    """What `Report.of` reads, from a `Tally` or a vector of totals; `taken` None: the steps."""
    # float64 holds the float32 and int32 states of metrics exactly.
    total = _flat(tally) if isinstance(tally, Tally) else tally
    counts = [steps, steps if taken is None else taken]
    parts = [tf.stack([tf.cast(n, tf.float64) for n in counts]), total]
    parts += [tf.reshape(tf.cast(m, tf.float64), [-1]) for m in metrics]
    return tf.concat(parts, 0)


def of_push(sent: Push, receipt: Receipt, nbytes: int) -> Tally:
    """The tally of one push; one that the servers did not take counts nothing.

    Args:
      sent: the push.
      receipt: the servers' answer.
      nbytes: that it sent.
    """
    counts = tf.cast(tf.logical_and(sent.live, sent.finite), tf.float64)
    bin_ = tf.minimum(receipt.staleness, STALENESSES - 1)
    missed = tf.cast(receipt.staleness, tf.float64) * counts
    return Tally(
        pushes=counts,
        updates=tf.cast(receipt.updated, tf.float64),
        max_staleness=missed,
        bytes_up=tf.cast(sent.live, tf.float64) * nbytes,
        total_staleness=missed,
        staleness=tf.one_hot(bin_, STALENESSES, dtype=tf.float64) * counts,
    )


def _flat(tally: Tally) -> tf.Tensor:
    scalars = tf.stack([tf.cast(t, tf.float64) for t in tally[:-1]])
    counts = tally.staleness
    counts = tf.zeros([STALENESSES], tf.float64) if isinstance(counts, tuple) else counts
    return tf.concat([scalars, counts], 0)


def _full(tally: Tally) -> Tally:
    if isinstance(tally.staleness, tuple):
        return tally._replace(staleness=np.zeros(STALENESSES))
    return tally
