"""Variables too large for the chief: their rows live on the servers from the start."""

import numpy as np
import tensorflow as tf

from tfps import _keras, errors
from tfps.devices import ps_device
from tfps.placement import rows_dealt


class RemoteVariable:
    """The value of a Keras variable whose rows were made on the servers.

    It stands where a Keras variable keeps its `tf.Variable`. Reading it as a whole
    (`numpy`, `model.save`) brings all rows to the chief; nothing else does.

    Attributes:
      shape: `tf.TensorShape`.
      dtype: `tf.DType`.
      row_ranges: (begin, end) on each ps, as equal as can be.
      parts: `tf.Variable`s by ps.
    """

    is_remote = True

    def __init__(self, initializer, shape, dtype, num_ps: int, name: str = "variable"):
        """Makes the rows of each ps on that ps.

        Args:
          initializer: of Keras. Random ones draw every part by itself, from
            the distribution of the whole, so the values differ from those of a
            variable made in one piece with the same seed.
          shape, dtype: of the whole.
          num_ps: number of parameter servers.
          name: for messages.

        Raises:
          ConfigError: the initializer's values cannot be made part by part.
        """
        self.shape, self.dtype, self.name = tf.TensorShape(shape), tf.as_dtype(dtype), name
        self.trainable = True
        self.row_ranges = rows_dealt(self.shape[0], num_ps)
        self.parts = []
        for ps, (begin, end) in enumerate(self.row_ranges):
            part_shape = (end - begin, *self.shape[1:])
            part = _keras.initializer_of_part(initializer, tuple(self.shape), part_shape, ps)
            if part is None:
                raise errors.ConfigError(
                    f"{name} {tuple(self.shape)} is too large for the chief, and the values of "
                    f"{type(initializer).__name__} cannot be made part by part; use a "
                    "random, zero or constant initializer, or raise the strategy's max_chief_bytes"
                )
            with tf.device(ps_device(ps)):
                self.parts.append(tf.Variable(part(part_shape, dtype=dtype), trainable=False))

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
        del name
        return tf.constant(self.numpy(), dtype=dtype or self.dtype)

    def assign(self, value) -> "RemoteVariable":
        """Sends every ps its rows of `value`."""
        for part, (begin, end) in zip(self.parts, self.row_ranges, strict=True):
            part.assign(value[begin:end])
        return self
