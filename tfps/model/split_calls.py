"""A model whose calls are split over devices: each device computes its part of the batch.

The call of the model is what is split, and nothing else. What surrounds the call in a step sees the
whole batch and all outputs: the loss with its sample weights and masks, the metrics, the gradients,
and whatever an own `train_step` does. So all of these are what they are on one device.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps import _keras_placement
from tfps.model.part_call import PartCall
from tfps.model.parts import bounds_of, mean_of, piece_of, together


class _Written(NamedTuple):
    """What the calls of all devices have assigned to a variable.

    Attributes:
      variable: the variable.
      values: per device.
      of_batch: whether the values depend on the device's part of the batch.
    """

    variable: keras.Variable
    values: list[tf.Tensor]
    of_batch: bool


class SplitCalls:
    """Splits the calls of a model."""

    def __init__(
        self, model: keras.Model, seeds: set[int], devices: Sequence[str], jit_compile: bool
    ):
        """Leaves the model alone; see `active`.

        Args:
          model: whose calls are split.
          seeds: `id`s of the states of random generators.
          devices: a batch is split into as many parts. The first device puts the outputs together.
          jit_compile: whether each device's call is compiled with XLA.
        """
        self._model = model
        self._seeds = seeds
        self._devices = list(devices)
        self._jit_compile = jit_compile

    @contextlib.contextmanager
    def active(self, inline: bool = False) -> Iterator[None]:
        """A context in which calls by this thread are split: of the model, or of a model in it.

        A step of the user's own may call the models inside of its model by themselves, as that of a
        GAN does.

        Args:
          inline: whether the calls are traced as they are, on the device in scope and without XLA,
            for a look at what they do.
        """
        thread, inside = threading.get_ident(), False
        kept: list[Any] = []  # Keras knows losses by `id`, which must not be used again.

        def split(model: keras.Model, original: Callable, *args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside or threading.get_ident() != thread:
                return original(*args, **kwargs)
            inside = True
            try:
                return self._split(model, original, args, kwargs, inline, kept)
            finally:
                inside = False

        inner = [
            one for one in _keras_placement.layers_of(self._model) if isinstance(one, keras.Model)
        ]
        with contextlib.ExitStack() as stack:
            for model in (self._model, *inner):
                replaced = _keras_placement.calls_replaced(model, functools.partial(split, model))
                stack.enter_context(replaced)
            yield

    def _split(
        self, model: keras.Model, original: Callable, args, kwargs, inline: bool, kept: list
    ) -> Any:
        leaves = keras.tree.flatten((args, kwargs))
        batched = [t for t in leaves if tf.is_tensor(t) and t.shape.rank != 0]
        if not batched:
            return original(*args, **kwargs)
        scope = _keras_placement.stateless_scope()
        length = batched[0].shape[0]
        parts, structure = [], None
        for k, bounds in enumerate(bounds_of(batched[0], len(self._devices))):
            # The batch is on the worker's host; only its part goes to the device.
            with contextlib.nullcontext() if inline else tf.device(_host_of(self._devices[k])):
                pieces = [piece_of(t, bounds, length) for t in leaves]
            with contextlib.nullcontext() if inline else tf.device(self._devices[k]):
                part = PartCall(original, scope, self._seeds, k, (args, kwargs), pieces)
                part.run(self._jit_compile and not inline)
            structure = part.structure
            parts.append((part, bounds))
            kept.append(part.losses)
        for written in _written([part for part, _ in parts]):
            scope.add_update((written.variable, self._combined(written, scope, parts)))
        weights = [bounds.weight for _, bounds in parts]
        for one in zip(*(part.losses for part, _ in parts), strict=True):
            model.add_loss(mean_of(one, weights))
        return self._outputs(structure, parts)

    def _combined(self, written: _Written, scope: keras.StatelessScope, parts) -> tf.Tensor:
        """The value of a variable after the calls, of what each device has assigned to it.

        A value that the batch has no part in is the same on all devices. A variable whose
        aggregation is "sum", or whose dtype is no floating one, adds up what the devices add to it.
        Any other is averaged, weighted by the examples.
        """
        variable, values, of_batch = written
        how, dtype = variable.aggregation, values[0].dtype
        if not of_batch or id(variable) in self._seeds or how == "only_first_replica":
            return values[0]
        if dtype.is_bool:
            return tf.reduce_any(tf.stack(values), 0)
        if how == "sum" or dtype.is_integer:
            before = scope.get_current_value(variable)
            added = [
                tf.where(bounds.kept > 0, v - before, tf.zeros_like(before))
                for v, (_, bounds) in zip(values, parts, strict=True)
            ]
            return before + tf.add_n(added)
        return mean_of(values, [bounds.weight for _, bounds in parts])

    def _outputs(self, structure: Any, parts: list) -> Any:
        """The model's outputs for the whole batch, with their masks."""
        weights = [bounds.weight for _, bounds in parts]
        outputs = []
        for i in range(len(parts[0][0].outputs)):
            pieces = [(part.outputs[i], bounds) for part, bounds in parts]
            if not tf.is_tensor(pieces[0][0]):
                outputs.append(pieces[0][0])
                continue
            if pieces[0][0].shape.rank == 0:
                outputs.append(mean_of([t for t, _ in pieces], weights))
                continue
            whole = together(pieces)
            masks = [part.masks[i] for part, _ in parts]
            if masks[0] is not None:
                both = zip(masks, [bounds for _, bounds in parts], strict=True)
                _keras_placement.set_mask(whole, together(list(both)))
            outputs.append(whole)
        return keras.tree.pack_sequence_as(structure, outputs)


def _written(parts: Sequence[PartCall]) -> list[_Written]:
    """What the parts have assigned, variable by variable."""
    found = []
    for key, (variable, _, _) in parts[0].values.items():
        each = [part.values[key] for part in parts]
        found.append(_Written(variable, [v for _, v, _ in each], any(d for _, _, d in each)))
    return found


def _host_of(device: str) -> str:
    spec = tf.DeviceSpec.from_string(device)
    return spec.replace(device_type="CPU", device_index=0).to_string()
