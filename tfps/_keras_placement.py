"""Where the layers of a Keras model are called, and how: private names of Keras 3.15."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope

mask_of, set_mask = get_keras_mask, set_keras_mask
stateless_scope = get_stateless_scope


@contextlib.contextmanager
def calls_replaced(layer: keras.Layer, instead: Callable[..., Any]) -> Iterator[None]:
    """A context in which a layer's `call` is another function.

    What Keras does around `call` (it converts arguments, finds masks, opens scopes) is done once.

    Args:
      layer: a layer or a model.
      instead: called with the layer's own `call` before the arguments.
    """
    attributes = vars(layer)  # `setattr` would have Keras look for something to track.
    before, original = attributes.get("call"), layer.call
    attributes["call"] = functools.partial(instead, original)
    try:
        yield
    finally:
        if before is None:
            del attributes["call"]
        else:
            attributes["call"] = before


@contextlib.contextmanager
def calls_on(model: keras.Model, devices: Mapping[int, str]) -> Iterator[None]:
    """A context in which layers of a model run on devices.

    Args:
      model: the model.
      devices: `id` of a layer -> its device. The layers inside of it run there too, unless they
        have devices of their own.
    """

    def instead(device: str, original: Callable, *args: Any, **kwargs: Any) -> Any:
        with tf.device(device):
            return original(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for layer in layers_of(model):
            if id(layer) in devices:
                placed = functools.partial(instead, devices[id(layer)])
                stack.enter_context(calls_replaced(layer, placed))
        yield


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """All layers of a model, also those inside of others, each once."""
    return list({id(one): one for one in model._flatten_layers(include_self=False)}.values())


def stateful_layers(model: keras.Model) -> list[str]:
    """The names of layers that keep a state of the batch's shape (`stateful=True` of an RNN)."""
    return [layer.name for layer in layers_of(model) if getattr(layer, "stateful", False) is True]
