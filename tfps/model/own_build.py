"""Creating the variables of a model that only its own steps know how to call."""

from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_interception, _keras_models, _tf_tracing
from tfps.model.batches import without_optionals


def build_own(model: keras.Model, batch: Any, mode: str) -> None:
    """Creates the variables of the model by tracing a step once, as Keras does.

    If the model runs eagerly, the step runs once on a batch, without effect. No optimizer is built,
    since its state belongs on the servers.

    Args:
      model: the model. A model that is built already is left alone.
      batch: of the input, if the model runs eagerly; otherwise the nested `tf.TypeSpec`s of one.
      mode: "train", "test" or "predict".
    """
    if _keras_models.is_built(model):
        return
    step = getattr(model, f"{mode}_step")

    def run(batch):
        with (
            _tf_tracing.functions_inlined(),
            _keras_interception.intercepted(lambda *args: None, lambda optimizer, loss: loss),
        ):
            step(batch)

    if model.run_eagerly:
        with _keras_interception.unchanged_variables():
            run(batch)
    else:
        tf.function(run, autograph=False).get_concrete_function(without_optionals(batch))
