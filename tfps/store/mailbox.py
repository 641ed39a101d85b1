"""The mail between workers and a parameter server: what is in a letter, and how it is put in.

A worker never writes to a variable of a ps. It puts a letter into the inbox of the ps, in one
operation that happens wholly or not at all, and waits for the answer. The loop of the ps
(`server_loop.py`) takes letters out one by one. So the death of a worker cannot interrupt an
update: what a worker calls on a ps is cancelled with the worker, but the loop is called by the
chief.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfps.cluster.devices import ps_device

# Which of them have a push must go into one number; see `repeats_of`.
MOST_PS = 62

# The kinds of letters.
PUSH, REPEAT, FENCE, STOP = range(4)


class Header(NamedTuple):
    """The numbers of a letter: int64 scalars, sent as one row.

    Attributes:
      kind: PUSH and REPEAT come from workers, FENCE and STOP from the chief.
      worker: index of the worker that sends, or that is fenced off.
      life: of the worker. A fence says which life begins.
      unit: the number of what is pushed. The numbers of a worker's pushes grow.
      masked: 1 if this ps has the unit already and is to ignore the letter.
      version: number of updates in the parameters with which the push was computed.
      live: 1 if the letter carries an update, 0 for a placeholder that changes nothing.
      finite: 0 if gradients overflowed (loss scaling).
      expected: number of pushes in the round; 0 outside of rounds.
      learning_rate: the bits of a float32.
      loss_scale: the bits of a float32 by which the worker multiplied the loss.
    """

    kind: Any
    worker: Any
    life: Any
    unit: Any
    masked: Any
    version: Any
    live: Any
    finite: Any
    expected: Any
    learning_rate: Any
    loss_scale: Any

    def row(self) -> tf.Tensor:
        """int64 [11]."""
        return tf.stack([_integer(t) for t in self])

    @classmethod
    def of(cls, row: tf.Tensor) -> "Header":
        """Reads a row."""
        return cls(*tf.unstack(row, num=len(cls._fields)))


# The handle of a queue.
HANDLE = tf.TensorSpec([], tf.resource)

HEADER = tf.TensorSpec([len(Header._fields)], tf.int64)

# What the loop answers a push: staleness, whether there was an update, and the unit.
ANSWER = tf.TensorSpec([3], tf.int64)


def _integer(t: Any) -> tf.Tensor:
    t = tf.convert_to_tensor(t)
    if t.dtype == tf.float32:
        t = tf.bitcast(t, tf.int32)
    return tf.cast(t, tf.int64)


def number(bits: tf.Tensor) -> tf.Tensor:
    """The float32 scalar of a header's bits."""
    return tf.bitcast(tf.cast(bits, tf.int32), tf.float32)


def repeats_of(has: Collection[int]) -> int:
    """The number that tells a push that it is a repeat: 0 tells that it is none.

    Args:
      has: the ps that have the unit already.
    """
    return 1 + sum(2 << p for p in has)


def masked(repeats: tf.Tensor, p: int) -> tf.Tensor:
    """int64 scalar, `Header.masked` for a ps, of a number of `repeats_of`."""
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(repeats, p + 1), 1)


class ViewHandles(NamedTuple):
    """What the ps know of the parameters that a worker holds; see `views`.

    Attributes:
      values: bucket -> its values as the worker has them, flat; empty before the first pull.
      counts: ps -> int64 scalar, pulls since the views were empty.
    """

    values: dict[int, tf.Tensor]
    counts: dict[int, tf.Tensor]


class SenderHandles(NamedTuple):
    """What a worker needs to send letters: arguments of every training step.

    Attributes:
      identity: int64 [2] on the worker, its index and its life.
      inboxes: ps -> the queue of its loop, for those that pushes concern.
      answers: ps -> the queue of the answers to this life of this worker.
      views: what the ps know of the parameters that this life of this worker holds.
    """

    identity: tf.Tensor
    inboxes: dict[int, tf.Tensor]
    answers: dict[int, tf.Tensor]
    views: ViewHandles


def sender_specs(written_to: Sequence[int], views: ViewHandles) -> SenderHandles:
    """The form of `SenderHandles` for pushes to these ps, and of views of this form."""
    handles = dict.fromkeys(written_to, HANDLE)
    return SenderHandles(tf.TensorSpec([2], tf.int64), handles, handles, views)


def queue(ps: int, specs: Sequence[tf.TensorSpec], name: str) -> tf.Tensor:
    """Makes a queue on a ps and returns its handle.

    Args:
      ps: index.
      specs: of what an element consists of; only the dtypes count.
      name: of the queue among all queues of the chief.
    """
    with tf.device(ps_device(ps)):
        return tf.raw_ops.FIFOQueueV2(component_types=[s.dtype for s in specs], shared_name=name)


def delete(ps: int, handle: tf.Tensor) -> None:
    """Deletes a queue. Whoever waits there gets an error."""
    with tf.device(ps_device(ps)):
        tf.raw_ops.QueueCloseV2(handle=handle, cancel_pending_enqueues=True)
        tf.raw_ops.DestroyResourceOp(resource=handle, ignore_lookup_error=True)


def length(ps: int, handle: tf.Tensor) -> int:
    """How many elements a queue has."""
    with tf.device(ps_device(ps)):
        return int(tf.raw_ops.QueueSizeV2(handle=handle))


def put(inbox: tf.Tensor, answers: tf.Tensor, letter: Sequence[tf.Tensor]) -> tf.Operation:
    """Puts a letter into an inbox. The caller enters the device of the ps.

    Args:
      inbox: of the ps.
      answers: where the answer is to go.
      letter: the row of a `Header`, and what else is in the letter.
    """
    return tf.raw_ops.QueueEnqueueV2(handle=inbox, components=[answers, *letter])


def take(inbox: tf.Tensor, specs: Sequence[tf.TensorSpec]) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Waits for the next letter; (where its answer is to go, the letter).

    No thread is blocked meanwhile. The caller enters the device of the ps.
    """
    dtypes = [tf.resource, *(s.dtype for s in specs)]
    answers, *letter = tf.raw_ops.QueueDequeueV2(handle=inbox, component_types=dtypes)
    for t, spec in zip(letter[:1], specs, strict=False):
        t.set_shape(spec.shape)
    return answers, letter


def answered(answers: tf.Tensor, spec: tf.TensorSpec = ANSWER) -> tf.Tensor:
    """Waits for the next answer. The caller enters the device of the ps."""
    (answer,) = tf.raw_ops.QueueDequeueV2(handle=answers, component_types=[spec.dtype])
    answer.set_shape(spec.shape)
    return answer
