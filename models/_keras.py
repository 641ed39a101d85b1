"""The private name of Keras that the reference programs need, as of Keras 3.15.1."""

from typing import Any

import keras


def build(model: keras.Model, batch: Any) -> None:
    """Creates what a compiled model would create in its first step: weights, metrics, slots.

    Under a strategy of `tf.distribute`, variables cannot be created while a step is traced.

    Args:
      model: a compiled model.
      batch: what a step is given, as tensors; only shapes and dtypes are used.
    """
    model._symbolic_build(data_batch=batch)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
