"""The variables of a served model, which change all at once while requests are answered.

A request reads all of them, and reads again if they were exchanged meanwhile: a sequence lock. A
read shares the memory of a variable and an assignment replaces it, so nothing is copied, and a
request goes on with what it has read. Nobody waits for a request, and a request that is cancelled
leaves nothing behind.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfps.serving.content import Content

# How long a reader waits for an exchange to end (s).
_PATIENCE = 60.0


class View(NamedTuple):
    """One state of a served model.

    Attributes:
      weights: tensors.
      keys: of each table, int64 [n], ascending.
      rows: of each table, float32 [n, width].
      number: int64 scalar, how many deltas it has taken in.
    """

    weights: list[tf.Tensor]
    keys: list[tf.Tensor]
    rows: list[tf.Tensor]
    number: tf.Tensor


class ServedState(tf.Module):
    """A `View` in variables, and the one before.

    Attributes:
      id: string scalar, of the export.
    """

    def __init__(self, content: Content, export_id: str):
        """Makes the variables.

        Args:
          content: what is served at first.
          export_id: of the export.
        """
        super().__init__()
        self.id = tf.Variable(export_id, trainable=False)
        self.weights = [tf.Variable(a, trainable=False) for a in content.weights]
        self.keys = [_of_any_length(table.keys) for table in content.tables]
        self.rows = [_of_any_length(table.rows) for table in content.tables]
        self.number = tf.Variable(0, dtype=tf.int64, trainable=False)
        # What a rollback brings back; empty as long as there is nothing to go back to.
        self.weights_before = [
            tf.Variable(a[:0] if a.ndim else a, shape=tf.TensorShape(None), trainable=False)
            for a in content.weights
        ]
        self.keys_before = [_of_any_length(table.keys[:0]) for table in content.tables]
        self.rows_before = [_of_any_length(table.rows[:0]) for table in content.tables]
        self.number_before = tf.Variable(-1, dtype=tf.int64, trainable=False)
        # Odd while an exchange is under way.
        self._exchanges = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._lock_name = f"tfps_served_{export_id}"

    def view(self) -> View:
        """The state of now, as one.

        It is an error of the call if there is none for a minute: an exchange was cancelled amid.
        """
        first = self._read()
        shapes = tf.nest.map_structure(lambda t: t.shape, first)
        until = tf.timestamp() + _PATIENCE

        def is_torn(begin, end):
            return tf.logical_or(begin % 2 != 0, begin != end)

        begin, end, found = tf.while_loop(
            lambda begin, end, found: tf.logical_and(is_torn(begin, end), tf.timestamp() < until),
            lambda begin, end, found: self._read(),
            first,
            shape_invariants=shapes,
        )
        whole = tf.debugging.Assert(
            tf.logical_not(is_torn(begin, end)),
            [f"an exchange has not ended for {_PATIENCE:.0f} s; load the model again"],
        )
        with tf.control_dependencies([whole]):
            return tf.nest.map_structure(tf.identity, found)

    def _read(self) -> tuple[tf.Tensor, tf.Tensor, View]:
        begin = self._exchanges.read_value()
        with tf.control_dependencies([begin]):
            families = self.weights, self.keys, self.rows
            weights, keys, rows = ([v.read_value() for v in some] for some in families)
            found = View(weights, keys, rows, self.number.read_value())
        with tf.control_dependencies(tf.nest.flatten(found)):
            return begin, self._exchanges.read_value(), found

    def exchange(self, now: View, after: View, before: View | None) -> tf.Tensor:
        """Puts a state in the place of another one; returns its number.

        Args:
          now: of `view`, the state that is to go. It is an error of the call if it is gone already.
          after: that is to come.
          before: to which a rollback shall go back; None if none shall.
        """
        with tf.device("CPU:0"):
            mutex = tf.raw_ops.MutexV2(shared_name=self._lock_name, container="")
            held = tf.raw_ops.MutexLock(mutex=mutex)
        # What is to come is computed before the exchange begins, which then cannot fail.
        with tf.control_dependencies([held, *tf.nest.flatten(after)]):
            is_there = tf.debugging.Assert(
                tf.equal(self.number.read_value(), now.number),
                ["another exchange came first; call again"],
            )
        with tf.control_dependencies([is_there]):
            begun = self._exchanges.assign_add(1, read_value=False)
        with tf.control_dependencies([begun]):
            done = self._assign(after, self.weights, self.keys, self.rows, self.number)
            gone = View([], [], [], tf.constant(-1, tf.int64)) if before is None else before
            done += self._assign(
                gone, self.weights_before, self.keys_before, self.rows_before, self.number_before
            )
        with tf.control_dependencies(done):
            ended = self._exchanges.assign_add(1, read_value=False)
        with tf.control_dependencies([ended]):
            tf.raw_ops.ConsumeMutexLock(mutex_lock=held)
            return tf.identity(after.number)

    @staticmethod
    def _assign(view: View, weights, keys, rows, number) -> list[tf.Operation]:
        families = [(weights, view.weights), (keys, view.keys), (rows, view.rows)]
        done = [
            variable.assign(value, read_value=False)
            for variables, values in families
            for variable, value in zip(variables, values, strict=False)
        ]
        return [*done, number.assign(view.number, read_value=False)]

    def before(self) -> View:
        """The state before the last delta; its number is -1 if there is none."""
        families = self.weights_before, self.keys_before, self.rows_before
        weights, keys, rows = ([v.read_value() for v in some] for some in families)
        return View(weights, keys, rows, self.number_before.read_value())


def _of_any_length(array: np.ndarray) -> tf.Variable:
    shape = [None, *array.shape[1:]]
    return tf.Variable(array, shape=tf.TensorShape(shape), trainable=False)
