"""Copies of the chief's lookup tables on the workers that look things up."""

from collections.abc import Callable

import tensorflow as tf

from tfps import _tf_copies, _tf_resources


def use_copies(graph: tf.types.experimental.ConcreteFunction) -> None:
    """Lets each worker that calls a graph look up in a copy of its own.

    A layer such as `StringLookup` holds a table of the chief, and a graph that captured the table
    would send every key to the chief. What is in a static table does not change, so each worker
    can have a copy. A table that can change stays on the chief, where all workers share it.

    Args:
      graph: a graph that workers will call. The tables are among what it captured.
    """
    for handle in _tf_resources.captured_handles(graph):
        if (table := _tf_resources.static_table_of(handle)) is not None:
            _tf_resources.capture_at_call(graph, handle, _chosen(handle, table))


def _chosen(handle: tf.Tensor, table: tf.lookup.StaticHashTable) -> Callable[[], tf.Tensor]:
    """Returns a function that returns the handle of the copy on the task in scope."""
    copies = _tf_copies.Residents(lambda cpu: [_copy(table, cpu)])

    def chosen() -> tf.Tensor:
        task = _tf_copies.task_in_scope()
        return handle if task is None else copies.on(task)[0]

    return chosen


def _copy(table: tf.lookup.StaticHashTable, cpu: str) -> tf.Tensor:
    keys, values = _tf_copies.copied(table.export(), cpu)
    with tf.device(cpu):
        # It ends with its handle.
        copy = tf.raw_ops.AnonymousHashTable(key_dtype=keys.dtype, value_dtype=values.dtype)
        tf.raw_ops.InitializeTableV2(table_handle=copy, keys=keys, values=values)
    return copy
