"""Variables too large for the chief: their rows live on the servers from the start."""

import concurrent.futures
import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfps import _keras_creation, errors
from tfps.cluster.devices import ps_device
from tfps.store.placement import rows_dealt


class RemoteVariable:
    """The value of a Keras variable whose rows were made on the servers.

    A Keras variable keeps it in place of its `tf.Variable`. Reading the whole variable (`numpy`,
    `model.save`) brings all rows to the chief; nothing else does.

    Attributes:
      shape: `tf.TensorShape`.
      dtype: `tf.DType`.
      row_ranges: (begin, end) on each ps, as equal as can be.
      parts: `tf.Variable`s by ps.
      before_writing: called before rows are replaced.
    """

    def __init__(
        self,
        initializer: Callable,
        shape: Sequence[int],
        dtype: tf.DType | str,
        num_ps: int,
        name: str = "variable",
    ):
        """Creates the rows of each ps on that ps.

        Args:
          initializer: of Keras. A random initializer draws every part by itself, from the
            distribution of the whole, so the values differ from those of a variable made in one
            piece with the same seed.
          shape, dtype: of the whole variable.
          num_ps: number of parameter servers.
          name: for error messages.

        Raises:
          ConfigError: the initializer's values cannot be made part by part.
        """
        self.shape, self.dtype, self.name = tf.TensorShape(shape), tf.as_dtype(dtype), name
        self.trainable, self.before_writing = True, lambda: None
        self.row_ranges = rows_dealt(self.shape[0], num_ps)
        makers = []
        for ps, (begin, end) in enumerate(self.row_ranges):
            part_shape = (end - begin, *self.shape[1:])
            part = _keras_creation.initializer_of_part(
                initializer, tuple(self.shape), part_shape, ps
            )
            if part is None:
                raise errors.ConfigError(
                    f"{name} {tuple(self.shape)} is too large for the chief, and the values of "
                    f"{type(initializer).__name__} cannot be made part by part; use a "
                    "random, zero or constant initializer, or raise the strategy's max_chief_bytes"
                )
            makers.append(_maker(part, part_shape, dtype))
        with concurrent.futures.ThreadPoolExecutor(num_ps) as pool:
            self.parts = list(pool.map(_make, range(num_ps), makers))

    def like(self, parts: Sequence[Any], name: str) -> "RemoteVariable":
        """Makes a variable of other parts that are dealt out in the same way, such as a slot.

        Args:
          parts: variables of the shapes of this variable's own, by ps.
          name: for error messages.
        """
        other = copy.copy(self)
        other.name, other.parts = f"{self.name}/{name}", list(parts)
        other.dtype = tf.as_dtype(parts[0].dtype)
        other.trainable = False
        return other

    @property
    def _unique_id(self) -> str:
        return f"remote_{id(self)}"

    def numpy(self) -> np.ndarray:
        """All rows, on the chief."""
        return np.concatenate([part.numpy() for part in self.parts])

    def __array__(self, dtype=None, copy=None):
        del copy
        return self.numpy().astype(dtype or self.dtype.as_numpy_dtype, copy=False)

    def __tf_tensor__(self, dtype=None, name=None):
        if dtype is not None and dtype != self.dtype:
            raise ValueError(f"{self.name} is {self.dtype.name}, not {tf.as_dtype(dtype).name}")
        return tf.concat([part.read_value() for part in self.parts], 0, name=name)

    def assign(self, value: np.ndarray | tf.Tensor) -> "RemoteVariable":
        """Sends every ps its rows of `value`."""
        self.before_writing()
        for part, (begin, end) in zip(self.parts, self.row_ranges, strict=True):
            part.assign(value[begin:end])
        return self


def _maker(initializer, shape, dtype):
    # Compiled, the initializer writes its values once, without copies between its operations. A
    # remote task runs a compiled function only inside of another function.
    values = tf.function(
        functools.partial(initializer, shape, dtype=dtype), jit_compile=True, autograph=False
    )
    return tf.function(lambda: values(), autograph=False).get_concrete_function()


def _make(ps: int, values) -> tf.Variable:
    with tf.device(ps_device(ps)):
        return tf.Variable(values(), trainable=False)
