"""What a call on a worker reports to the chief: one vector, because each tensor is a round trip."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps.store.push import Push
from tfps.store.server_loop import Receipt

# Pushes are counted by staleness. The last count is of all pushes that missed as many updates, or
# more.
STALENESSES = 64

_NO_PUSHES = np.zeros(STALENESSES)


class Tally(NamedTuple):
    """What steps did, besides metrics: tensors in a graph, floats and an array on the chief.

    Attributes:
      examples: in the batches.
      good: steps whose gradients did not overflow.
      pushes: that count, because the servers applied them or added them to a round.
      updates: that the servers made.
      max_staleness: the most updates that one of these pushes missed.
      bytes_up, bytes_down: that workers sent and received, as the codecs predict.
      total_staleness: the updates that these pushes missed, summed.
      staleness: float64 [STALENESSES], pushes by the number of updates that they missed.
    """

    examples: Any = 0.0
    good: Any = 0.0
    pushes: Any = 0.0
    updates: Any = 0.0
    max_staleness: Any = 0.0
    bytes_up: Any = 0.0
    bytes_down: Any = 0.0
    total_staleness: Any = 0.0
    staleness: Any = _NO_PUSHES


_SCALARS = len(Tally._fields) - 1
SIZE = _SCALARS + STALENESSES
_MAX = Tally._fields.index("max_staleness")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a call on a worker did, on the chief.

    Attributes:
      steps: how many steps it did.
      tally: of floats and an array.
      metrics: float64 arrays, the change of each metric variable; its value where the worker
        carries its metrics from call to call; empty if there was no step.
      taken: how many batches it took from its source: those of the steps, or the next one.
      worker: index of the worker.
      is_known: whether all of this is known. Otherwise only the numbers of steps and batches are,
        and the rest is in a later report.
    """

    steps: int
    tally: Tally
    metrics: list[np.ndarray]
    taken: int
    worker: int = 0
    is_known: bool = True

    @property
    def weight(self) -> float:
        """What the call counts in a round: its examples, or 0 if its gradients overflowed."""
        return self.tally.examples if self.tally.good else 0.0

    @classmethod
    def of(
        cls, vector: tf.Tensor | np.ndarray, shapes: Sequence[tf.TensorShape], worker: int = 0
    ) -> "Report":
        """Reads the float64 vector that a step returned.

        Args:
          vector: see `vector`.
          shapes: of the metrics; see `OwnValues`.
          worker: index of the worker.
        """
        values = vector if isinstance(vector, np.ndarray) else vector.numpy()
        scalars, counts = np.split(values[2 : 2 + SIZE], [_SCALARS])
        tally = Tally(**dict(zip(Tally._fields, [*scalars.tolist(), counts], strict=True)))
        offset = 2 + SIZE
        metrics = []
        for shape in shapes if values[0] and len(values) > offset else []:
            size = shape.num_elements()
            metrics.append(values[offset : offset + size].reshape(shape))
            offset += size
        return cls(int(values[0]), tally, metrics, int(values[1]), worker)

    @classmethod
    def later(cls, steps: int, taken: int, worker: int) -> "Report":
        """What is known of a call whose report stays on the worker for now."""
        return cls(steps, Tally(), [], taken, worker, is_known=False)

    def counted(self) -> "Report":
        """What is left of a report when all but its batches has been counted."""
        return Report.later(self.steps, self.taken, self.worker)

    def of_push(self) -> "Report":
        """What the call pushed, without its batches: these were reported before."""
        tally = Tally(
            pushes=self.tally.pushes,
            updates=self.tally.updates,
            max_staleness=self.tally.max_staleness,
            bytes_up=self.tally.bytes_up,
            bytes_down=self.tally.bytes_down,
            total_staleness=self.tally.total_staleness,
            staleness=self.tally.staleness,
        )
        return Report(0, tally, [], self.taken, self.worker)

    def __add__(self, other: "Report") -> "Report":
        """What a call did together with the push that followed it, a call of its own."""
        tally, taken = sum_of(self.tally, other.tally), self.taken + other.taken
        return Report(self.steps + other.steps, tally, self.metrics, taken, self.worker)


def sum_of(one: Tally, other: Tally) -> Tally:
    """Two tallies of the chief together."""
    total = Tally._make(a + b for a, b in zip(one, other, strict=True))
    return total._replace(max_staleness=max(one.max_staleness, other.max_staleness))


def zeros() -> tf.Tensor:
    """float64 [SIZE], the totals to start with; see `added`."""
    return tf.zeros([SIZE], tf.float64)


def added(total: tf.Tensor, *tallies: Tally) -> tf.Tensor:
    """float64 [SIZE], totals in the order of `Tally` with more tallies added to them."""
    is_max = [i == _MAX for i in range(SIZE)]
    for new in map(_flat, tallies):
        total = tf.where(is_max, tf.maximum(total, new), total + new)
    return total


def examples_of(total: tf.Tensor) -> tf.Tensor:
    """int64 scalar, the examples in totals of `added`."""
    return tf.cast(total[Tally._fields.index("examples")], tf.int64)


def vector(
    steps: tf.Tensor,
    tally: Tally | tf.Tensor,
    metrics: Sequence[tf.Tensor] = (),
    taken: tf.Tensor | None = None,
) -> tf.Tensor:
    """What `Report.of` reads.

    Args:
      steps: int or bool scalar, steps done.
      tally: a `Tally`, or totals of `added`.
      metrics: what is reported of each metric variable; nothing for a push alone.
      taken: int or bool scalar, batches taken; None if they are those of the steps.
    """
    # float64 holds the float32 and int32 states of metrics exactly.
    total = _flat(tally) if isinstance(tally, Tally) else tally
    counts = [steps, steps if taken is None else taken]
    parts = [tf.stack([tf.cast(n, tf.float64) for n in counts]), total]
    parts += [tf.reshape(tf.cast(m, tf.float64), [-1]) for m in metrics]
    return tf.concat(parts, 0)


def joined(before: tf.Tensor, vector: tf.Tensor, latest: int) -> tf.Tensor:
    """Two reports of a worker, one after the other, as one.

    Args:
      before: see `vector`; zeros for no report.
      vector: the report that followed.
      latest: of how many numbers at the end of a report the latest value counts, instead of the
        sum. A call without steps has no such value.
    """
    n = vector.shape[0]
    is_max = [i == 2 + _MAX for i in range(n)]
    both = tf.where(is_max, tf.maximum(before, vector), before + vector)
    if not latest:
        return both
    kept = tf.where(vector[0] > 0, vector, before)
    return tf.where([i >= n - latest for i in range(n)], kept, both)


def of_push(sent: Push, receipt: Receipt, nbytes: int) -> Tally:
    """The tally of one push; a push that the servers did not take counts nothing.

    Args:
      sent: the push.
      receipt: the servers' answer.
      nbytes: how many bytes a push sends.
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
    return tf.concat([scalars, tally.staleness], 0)
