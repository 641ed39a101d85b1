"""Server variables as a traced function sees them: by resource handle, on the server's device."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def read(handle: tf.Tensor, dtype: tf.DType | str, shape: Sequence[int | None]) -> tf.Tensor:
    """The value of a server variable. The caller enters the server's device.

    Args:
      handle: resource handle of the variable.
      dtype: element type of the variable.
      shape: static shape that the value gets.
    """
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.as_dtype(dtype))
    value.set_shape(shape)
    return value


def write(handles: Sequence[tf.Tensor], values: Sequence[tf.Tensor]) -> list[tf.Operation]:
    """Replaces the values of server variables. The caller enters the server's device.

    Args:
      handles: resource handles of the variables.
      values: the new value for each handle.

    Returns:
      The operations that write.
    """
    return [
        tf.raw_ops.AssignVariableOp(resource=h, value=v)
        for h, v in zip(handles, values, strict=True)
    ]


def read_rows(handle: tf.Tensor, dtype: tf.DType | str, where: tf.Tensor) -> tf.Tensor:
    """Some rows of a server variable, [n, ...]. The caller enters the server's device.

    Args:
      handle: resource handle of the variable.
      dtype: element type of the variable.
      where: int [n], which rows.
    """
    return tf.raw_ops.ResourceGather(resource=handle, indices=where, dtype=tf.as_dtype(dtype))


def write_rows(handle: tf.Tensor, where: tf.Tensor, rows: tf.Tensor) -> tf.Operation:
    """Replaces some rows of a server variable. The caller enters the server's device.

    Args:
      handle: resource handle of the variable.
      where: int [n], which rows; none of them twice.
      rows: [n, ...].
    """
    return tf.raw_ops.ResourceScatterUpdate(resource=handle, indices=where, updates=rows)


def add_rows(handle: tf.Tensor, where: tf.Tensor, rows: tf.Tensor) -> tf.Operation:
    """Adds to some rows of a server variable; see `write_rows`."""
    return tf.raw_ops.ResourceScatterAdd(resource=handle, indices=where, updates=rows)


def locked(lock: tf.Tensor, function: Callable[[], Any]) -> Any:
    """Lets a function make its operations under a mutex; returns what it returns.

    Args:
      lock: the mutex.
      function: returns nested tensors or operations.
    """
    held = tf.raw_ops.MutexLock(mutex=lock)
    with tf.control_dependencies([held]):
        found = function()
    with tf.control_dependencies(tf.nest.flatten(found)):
        tf.raw_ops.ConsumeMutexLock(mutex_lock=held)
    return found
