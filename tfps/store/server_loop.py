"""The loop of a parameter server: it takes letters out of the inbox and applies them, one by one.

The chief calls the loop and it runs on the ps for as long as training follows one policy. All that
a push changes on a ps is changed here, after all of the push has arrived. `docs/architecture.md`
("A ps is an actor") says why.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.cluster.remote_function import RemoteFunction
from tfps.store import ledger_file, mailbox
from tfps.store.handles import ServerHandles
from tfps.store.mailbox import FENCE, HEADER, REPEAT, STOP, Header


class Receipt(NamedTuple):
    """What a ps says of a push.

    Attributes:
      staleness: int64 scalar, the number of updates that were made since the parameters were
        pulled with which the push was computed.
      updated: bool scalar, whether the push brought an update.
    """

    staleness: tf.Tensor
    updated: tf.Tensor


class Roll(NamedTuple):
    """What a ps knows of the workers; each int64 [workers], except for `refused`.

    Attributes:
      lives: the life of each worker whose letters count.
      last: the unit of the last push of that life, -1 for none.
      repeated: the unit of the last repeat of that life, -1 for none.
      refused: int64 scalar, letters of earlier lives.
    """

    lives: tf.Tensor
    last: tf.Tensor
    repeated: tf.Tensor
    refused: tf.Tensor

    @classmethod
    def specs(cls) -> "Roll":
        """The form of a roll."""
        vector = tf.TensorSpec([None], tf.int64)
        return cls(vector, vector, vector, tf.TensorSpec([], tf.int64))

    def row(self, worker: tf.Tensor) -> tf.Tensor:
        """int64 [3]: the last unit of a worker, its last repeat, and `refused`."""
        return tf.stack([self.last[worker], self.repeated[worker], self.refused])


# Which run of which chief a loop belongs to: its first input where a ledger is kept.
RUN = tf.TensorSpec([2], tf.int64)

# How many examples a push has: the first tensor after the header where a ledger is kept.
RECORDS = tf.TensorSpec([], tf.int64)

# Takes in a push: (handles, its header, the other tensors of the letter) -> what the ps says of it.
TakeIn = Callable[[ServerHandles, Header, list[tf.Tensor]], Receipt]


class ServerLoop:
    """The loop of one ps, traced once.

    Attributes:
      specs: of a letter's tensors after the header.
    """

    def __init__(
        self,
        p: int,
        handles: ServerHandles,
        specs: Sequence[tf.TensorSpec],
        take_in: TakeIn,
        ledger: str | None = None,
    ):
        """Traces the loop.

        Args:
          p: index of the ps.
          handles: of all that is on the servers.
          specs: of a letter's tensors after the header.
          take_in: applies a push; it is called while the loop is traced, on the ps's device.
          ledger: folder in which the ps notes every letter; None if it notes nothing. The first
            tensor of each letter then says how many examples the unit has.
        """
        self.specs = list(specs)
        self._p, self._take_in = p, take_in
        self._ledger = ledger
        run = [] if ledger is None else [RUN]
        self._run = RemoteFunction(self._loop, handles, mailbox.HANDLE, Roll.specs(), run)

    def __call__(
        self, handles: ServerHandles, inbox: tf.Tensor, roll: Roll, run: tuple[int, int] = (0, 0)
    ) -> Roll:
        """Runs until a STOP comes; called under the ps's device.

        Args:
          handles: of all that is on this ps.
          inbox: from which letters are taken.
          roll: what the ps knows of the workers at the beginning.
          run: which run of which chief this is, for the ledger.

        Returns:
          The roll at the end.
        """
        if self._ledger is None:
            return self._run(handles, inbox, roll, [])
        ledger_file.begin(self._ledger, self._p)
        return self._run(handles, inbox, roll, [tf.constant(run, tf.int64)])

    def _loop(self, handles, inbox, roll, run):
        with tf.device(ps_device(self._p)):

            def body(goes_on, *roll):
                del goes_on
                answers, (row, *tensors) = mailbox.take(inbox, [HEADER, *self.specs])
                header = Header.of(row)
                return self._one(handles, Roll(*roll), answers, header, tensors, run)

            state = [tf.constant(True), *map(tf.identity, roll)]
            _, *roll = tf.while_loop(lambda goes_on, *_: goes_on, body, state)
            return Roll(*roll)

    def _one(self, handles, roll, answers, header, tensors, run):
        """Takes in one letter; returns (whether to go on, the roll)."""
        worker = header.worker
        is_push = header.kind <= REPEAT
        counts = tf.logical_and(is_push, self._is_present(roll, header))
        fences = tf.equal(header.kind, FENCE)
        orders = header.kind >= FENCE  # The chief sends them.
        acts = tf.logical_and(header.live > 0, tf.equal(header.masked, 0))

        def taken():
            shaped = [
                tf.ensure_shape(t, spec.shape) for t, spec in zip(tensors, self.specs, strict=True)
            ]
            receipt = self._take_in(handles, header, shaped)
            return tf.stack([receipt.staleness, tf.cast(receipt.updated, tf.int64), header.unit])

        def ignored():
            return tf.stack([tf.constant(0, tf.int64), tf.constant(0, tf.int64), header.unit])

        done = tf.cond(tf.logical_and(counts, acts), taken, ignored)
        told = tf.where(orders, roll.row(worker), done)
        noted = []
        if self._ledger is not None:
            line = self._line(run[0], header, counts, updated=done[1], records=tensors[0])
            noted = [ledger_file.append(self._ledger, self._p, line)]
        with tf.control_dependencies([done, *noted]):
            # Who is fenced off gets no answer: its calls have been given up.
            sent = tf.cond(
                tf.logical_or(counts, orders),
                lambda: _answer(answers, told),
                lambda: tf.constant(False),
            )
        with tf.control_dependencies([sent]):
            goes_on = tf.not_equal(header.kind, STOP)
            return goes_on, *_noted(roll, header, counts, is_push, fences)

    def _is_present(self, roll: Roll, header: Header) -> tf.Tensor:
        """Whether a letter is of the present life of its worker."""
        return tf.equal(roll.lives[header.worker], header.life)

    def _line(self, run, header, counts, updated, records) -> ledger_file.Line:
        """What the ledger says of a letter. A letter of the chief has no records."""
        return ledger_file.Line(
            chief=run[0],
            run=run[1],
            kind=header.kind,
            worker=header.worker,
            life=header.life,
            unit=header.unit,
            masked=header.masked,
            live=header.live,
            finite=header.finite,
            counts=counts,
            updated=updated,
            records=tf.reduce_max(tf.concat([tf.reshape(records, [-1]), [-1]], 0)),
        )


def _answer(answers: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    sent = tf.raw_ops.QueueEnqueueV2(handle=answers, components=[row])
    with tf.control_dependencies([sent]):
        return tf.constant(True)


def _noted(roll: Roll, header: Header, counts, is_push, fences) -> Roll:
    """The roll after a letter."""
    chosen = tf.equal(tf.range(tf.size(roll.lives), dtype=tf.int64), header.worker)
    pushed = tf.logical_and(counts, header.live > 0)
    begun = tf.logical_and(chosen, fences)
    nothing = tf.constant(-1, tf.int64)

    def unit(kind, before):
        new = tf.logical_and(chosen, tf.logical_and(pushed, tf.equal(header.kind, kind)))
        return tf.where(begun, nothing, tf.where(new, header.unit, before))

    refused = tf.logical_and(is_push, tf.logical_not(counts))
    return Roll(
        tf.where(begun, header.life, roll.lives),
        unit(mailbox.PUSH, roll.last),
        unit(REPEAT, roll.repeated),
        roll.refused + tf.cast(refused, tf.int64),
    )
