"""What a ps does with a push, in its loop."""

from collections.abc import Mapping

import tensorflow as tf

from tfps.store import mailbox
from tfps.store.aggregation import Aggregation, Arrived
from tfps.store.bucket_update import Rate
from tfps.store.handles import ServerHandles
from tfps.store.letters import Form
from tfps.store.mailbox import Header
from tfps.store.parameter_store import ParameterStore
from tfps.store.resources import read, write
from tfps.store.server_loop import Receipt


class Taker:
    """Takes pushes in, inside of the graph of a ps."""

    def __init__(self, store: ParameterStore, aggregation: Aggregation, scaled: bool):
        """Traces nothing yet.

        Args:
          store: with the variables.
          aggregation: what the servers do with a push.
          scaled: whether the learning rate of a push is divided by its staleness.
        """
        self._store, self._aggregation, self._scaled = store, aggregation, scaled

    def take_in(
        self, p: int, form: Form, handles: ServerHandles, header: Header, messages: list[tf.Tensor]
    ) -> Receipt:
        """Everything that a ps does with a push that carries an update.

        The lock keeps out what the chief writes meanwhile.

        Args:
          p: index of the ps.
          form: of the letter.
          handles: of what is on the ps.
          header, messages: the letter.
        """
        payloads, rows = form.opened(messages)
        with tf.control_dependencies(messages):
            lock = tf.raw_ops.MutexLock(mutex=handles.store.locks[p])
        with tf.control_dependencies([lock]):
            stated = self._write_state(handles, payloads)
            receipt, written = self._update(p, handles, header, payloads, rows)
        with tf.control_dependencies([*stated, *written]):
            tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
        return receipt

    def _write_state(
        self, handles: ServerHandles, payloads: Mapping[int, tuple]
    ) -> list[tf.Operation]:
        """Writes the model's state that no aggregation takes; returns the operations that write."""
        written = []
        for i, payload in payloads.items():
            bucket = self._store.plan.buckets[i]
            if bucket.kind.treatment.state and not self._aggregation.takes(i):
                value = self._aggregation.optimizer.channel(i).decode(payload)
                handle = handles.store.values[i]
                change = bucket.kind.treatment.write
                written.append(change(handle, bucket.dtype, bucket.shape, value))
        return written

    def _update(self, p, handles, header, payloads, rows) -> tuple[Receipt, list[tf.Operation]]:
        finite = header.finite > 0
        if not (self._aggregation.needs(p) or rows or p == 0):
            return Receipt(tf.constant(0, tf.int64), tf.constant(False)), []
        version = read(handles.store.versions[p], tf.int64, ())
        missed = version - header.version
        scale = 1 / tf.maximum(1.0, tf.cast(missed, tf.float32)) if self._scaled else None
        rate = Rate(mailbox.number(header.learning_rate), scale, missed)
        expected = tf.cast(header.expected, tf.int32)
        arrived = Arrived(payloads, rows, rate, finite, expected)
        written, updated = self._aggregation.update(p, handles, arrived)
        written += write([handles.store.versions[p]], [version + tf.cast(updated, tf.int64)])
        if p == 0:
            loss_scale = mailbox.number(header.loss_scale)
            written += self._update_loss_scale(handles, loss_scale, finite, updated)
        return Receipt(missed, updated), written

    def _update_loss_scale(
        self, handles: ServerHandles, used: tf.Tensor, finite: tf.Tensor, updated: tf.Tensor
    ) -> list[tf.Operation]:
        law, held = self._store.loss_scale, handles.store.loss_scale
        if law is None or held is None:
            return []
        scale, good = read(held.scale, tf.float32, ()), read(held.good_steps, tf.int32, ())
        new = law.update(scale, good, used, finite)
        # In rounds, the steps that went well are counted with the update.
        counts = tf.logical_or(updated, tf.logical_not(finite))
        kept = [tf.where(counts, n, o) for n, o in zip(new, (scale, good), strict=True)]
        return write(held, kept)
