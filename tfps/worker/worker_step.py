"""What every kind of training step has in common: the calls that the chief makes to a worker."""

from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from tfps.store.handles import ServerHandles
from tfps.worker.own_values import Own, OwnValues

# Residuals of the codecs: bucket -> the state of its channel.
Residuals = dict[int, tuple]


class WorkerMemory(NamedTuple):
    """What a worker keeps from one epoch to the next: all that is left of a carry at rest.

    Attributes:
      residuals: what the codecs have not sent yet.
      inner: the state of the worker's own optimizer (`LocalSteps`); empty otherwise.
    """

    residuals: Residuals
    inner: list[tf.Tensor]


class WorkerStep(Protocol):
    """A way to train on a worker, traced once for a form of input.

    The chief calls `start` on every worker when training begins to follow a policy, then the step
    itself for each piece of work, then `finish`, and `rest` with what `finish` leaves. All of them
    are called under the worker's device. What a worker keeps from one call to the next is its
    carry, a NamedTuple of tensors on the worker, whose form is the step's own business. What it has
    of its own of the model's variables outlives the carry, and goes in and out besides.

    Attributes:
      own: how these values go in and out.
      prefetches: whether a worker trains on the batch that it holds while it takes the next one.
        The work is then a `WorkAhead`.
    """

    own: OwnValues
    prefetches: bool

    def start(self, handles: ServerHandles, memory: WorkerMemory | None) -> Any:
        """Begins on a worker.

        Args:
          handles: of everything on the servers.
          memory: what the worker has kept until now; None if it has kept nothing.

        Returns:
          The carry for the first call.
        """

    def __call__(
        self,
        handles: ServerHandles,
        source: Any,
        carry: Any,
        own: Own,
        count: int,
        number: int,
        learning_rate: float,
    ) -> tuple[tf.Tensor, Any, Own]:
        """Trains on up to `count` batches.

        Args:
          handles: of everything on the servers.
          source: an iterator, which may end early, one batch, or a `Stack`.
          carry: of the call before, or of `start`.
          own: of the call before.
          count: how many batches to take at most.
          number: of the first step; no other step has the same number.
          learning_rate: for the optimizer; ignored where the optimizer follows a schedule.

        Returns:
          (float64 vector, see `tally.Report`; carry and own values for the next call).
        """

    def finish(self, handles: ServerHandles, carry: Any, learning_rate: float) -> tf.Tensor | None:
        """Pushes what is pending; returns the vector of a call of 0 steps, or None."""

    def rest(self, carry: Any) -> WorkerMemory:
        """What is left of a carry after `finish`: no parameters, no batch, no push."""


class RepeatableStep(WorkerStep, Protocol):
    """A step by which a worker can do again what another one has lost."""

    def __call__(
        self,
        handles: ServerHandles,
        source: Any,
        carry: Any,
        own: Own,
        count: int,
        number: int,
        learning_rate: float,
        repeats: int = 0,
    ) -> tuple[tf.Tensor, Any, Own]:
        """See `WorkerStep`.

        Args:
          repeats: 0, or `mailbox.repeats_of` the ps that have what is pushed already.
        """


class RoundStep(WorkerStep, Protocol):
    """A step whose push is a call of its own, made when the chief says so."""

    def push(
        self,
        handles: ServerHandles,
        carry: Any,
        number: int,
        share: float,
        expected: int,
        learning_rate: float,
        repeats: int = 0,
    ) -> tuple[tf.Tensor, Any]:
        """Pushes what the last call has computed.

        Args:
          handles: of everything on the servers.
          carry: of the last call.
          number: of the step, or any other number that no step has twice.
          share: of the worker in the weighted mean.
          expected: how many workers push in this round.
          learning_rate: for the optimizer; ignored where the optimizer follows a schedule.
          repeats: 0, or `mailbox.repeats_of` the ps that have the push already.

        Returns:
          (float64 vector of 0 steps, see `tally.Report`; the carry for the next call).
        """

    def with_residuals(self, carry: Any, residuals: Residuals) -> Any:
        """Returns the carry of a call with other residuals; see `WorkerStep.rest`."""


def kept(memory: WorkerMemory | None, fresh: Residuals) -> Residuals:
    """The residuals to go on with: a worker's own where they fit, otherwise fresh ones.

    Residuals fit if they are of the same bucket and have the shapes and dtypes of the fresh ones.

    Args:
      memory: what the worker has kept, or None.
      fresh: of the codecs that are in force now.
    """
    if memory is None:
        return fresh

    def shapes(residual):
        return [(tf.TensorShape(t.shape), tf.as_dtype(t.dtype)) for t in tf.nest.flatten(residual)]

    def fits(i):
        return i in memory.residuals and shapes(memory.residuals[i]) == shapes(fresh[i])

    def packed(i, new):
        # A snapshot keeps the tensors, and not what they are wrapped in.
        return tf.nest.pack_sequence_as(new, tf.nest.flatten(memory.residuals[i]))

    return {i: packed(i, new) if fits(i) else new for i, new in fresh.items()}
