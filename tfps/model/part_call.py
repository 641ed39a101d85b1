"""The call of a model for one device's part of a batch."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_placement
from tfps.model.lookups import depends
from tfps.model.own_step import NotingScope


class _PartScope(NotingScope):
    """The scope of one device's call: variables have the values that they have around it.

    Random generators give each device other numbers.
    """

    def __init__(self, around: keras.StatelessScope, seeds: set[int], index: int):
        super().__init__([], seeds)
        self._around, self._index = around, index

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        """See `NotingScope`."""
        own = super().get_current_value(variable)
        if own is not None:
            return own
        value = self._around.get_current_value(variable)
        if value is not None and self._index and id(variable) in self._seeds:
            drawn = tf.cast(tf.random.fold_in(value, self._index), value.dtype)
            value = self.state_mapping[id(variable)] = drawn
        return value


class PartCall:
    """The call for one device's part of a batch.

    Attributes:
      outputs: the leaves of what the call returns.
      structure: of what the call returns, for `keras.tree.pack_sequence_as`.
      masks: of the outputs; None for an output without a mask.
      values: per variable that the call assigns (by `id`): the variable, its value, and whether
        the value depends on the part.
      losses: that layers have added.
    """

    def __init__(
        self,
        call: Callable,
        around: keras.StatelessScope,
        seeds: set[int],
        index: int,
        like: Any,
        pieces: list[Any],
    ):
        """Calls nothing yet.

        Args:
          call: of the model.
          around: the scope in which the step runs.
          seeds: `id`s of the states of random generators.
          index: of the device.
          like: the call's (positional, keyword) arguments for the whole batch.
          pieces: the leaves of the arguments for this part.
        """
        self._call, self._around, self._seeds, self._index = call, around, seeds, index
        self._like, self._pieces = like, pieces
        self.structure: Any = None
        self.outputs: list[Any] = []
        self.masks: list[tf.Tensor | None] = []
        self.values: dict[int, tuple[keras.Variable, tf.Tensor, bool]] = {}
        self.losses: list[tf.Tensor] = []

    def run(self, jit_compile: bool) -> None:
        """Calls the model, in the scope around.

        Args:
          jit_compile: whether to compile the call with XLA.
        """
        if not jit_compile:
            self._trace(self._pieces)
            return
        tensors = [t for t in self._pieces if tf.is_tensor(t)]

        def call(*tensors: Any) -> Any:
            given = iter(tensors)
            self._trace([next(given) if tf.is_tensor(t) else t for t in self._pieces])
            values = [value for _, value, _ in self.values.values()]
            return [t for t in self.outputs if tf.is_tensor(t)], self.masks, values, self.losses

        specs = [tf.type_spec_from_value(t) for t in tensors]
        graph = tf.function(call, jit_compile=True, autograph=False).get_concrete_function(*specs)
        self._inside = self.losses  # Or their `id`s would be used again.
        outputs, self.masks, values, self.losses = graph(*tensors)
        found = iter(outputs)
        self.outputs = [next(found) if tf.is_tensor(t) else t for t in self.outputs]
        self.values = {
            key: (variable, value, of_batch)
            for (key, (variable, _, of_batch)), value in zip(
                self.values.items(), values, strict=True
            )
        }

    def _trace(self, pieces: list) -> None:
        inputs = [t for one in pieces if tf.is_tensor(one) for t in tf.nest.flatten(one, True)]
        masks = [_keras_placement.mask_of(t) for t in self._pieces]
        for one, mask in zip(pieces, masks, strict=True):
            if mask is not None:
                _keras_placement.set_mask(one, mask)
        args, kwargs = keras.tree.pack_sequence_as(self._like, pieces)
        with _PartScope(self._around, self._seeds, self._index) as scope:
            returned = self._call(*args, **kwargs)
        self.structure = returned
        self.outputs = keras.tree.flatten(returned)
        self.masks = [_keras_placement.mask_of(t) for t in self.outputs]
        self.losses = list(scope.losses)
        ops = {id(t.op) for t in inputs}
        self.values = {
            key: (v, scope.state_mapping[key], depends(scope.state_mapping[key], ops))
            for key, v in scope.written.items()
        }
