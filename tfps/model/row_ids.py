"""The ids that a step looks up in tables, computed from the batch alone."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfps import _tf_functions
from tfps.model.batches import without_optionals
from tfps.model.lookups import Find, looking_up
from tfps.model.stateless_model import StatelessModel


def row_ids(
    model: StatelessModel, tables: Sequence[int], step: tf.Tensor, batch: Any, mode: str
) -> dict[int, list[tf.Tensor]]:
    """Computes the ids that a step looks up in tables, without the weights.

    Args:
      model: the model.
      tables: indices of trainable variables that `inspect` found to be tables.
      step: int64 scalar, as for `StatelessModel.train`.
      batch: as for `StatelessModel.train`.
      mode: what the step is: "train", "test" or "predict".

    Returns:
      Table -> its lookups in the order in which the step makes them, integer tensors of any shape.
    """
    if not tables:
        return {}

    batch = without_optionals(batch)
    leaves = tf.nest.flatten(batch, expand_composites=True)
    given = [k for k, leaf in enumerate(leaves) if leaf is not None]

    def trace(step, *tensors):
        whole = list(leaves)
        for k, tensor in zip(given, tensors, strict=True):
            whole[k] = tensor
        whole = tf.nest.pack_sequence_as(batch, whole, expand_composites=True)
        return _traced(model, tables, step, whole, mode)

    # The graph must be pruned to what the ids depend on. TensorFlow itself keeps whatever an
    # assertion checks, and the loss of a batch of unknown length has assertions, so without pruning
    # the forward pass would run twice.
    inputs = [step, *(leaves[k] for k in given)]
    wrapped = tf.compat.v1.wrap_function(trace, [tf.TensorSpec(t.shape, t.dtype) for t in inputs])
    # What is captured at call time (a lookup table of the strategy's scope) is captured by the
    # graph around, and given to the pruned graph as an input.
    late = _tf_functions.late_captures(wrapped)
    feeds = [*wrapped.inputs[: len(inputs)], *(inside for inside, _ in late)]
    pruned = wrapped.prune(feeds, wrapped.structured_outputs)
    ids = pruned(*inputs, *(outside for _, outside in late))
    # The copy of a lookup table's operation no longer knows the shape of what it finds.
    tf.nest.map_structure(lambda t, of: t.set_shape(of.shape), ids, wrapped.structured_outputs)
    return ids


def _traced(model: StatelessModel, tables, step, batch, mode) -> dict[int, list[tf.Tensor]]:
    """Runs the step on zeros in place of all variables, and notes the ids."""
    finds = {i: _zero_rows(model.trainable[i]) for i in tables}
    trainable = [_zeros(v) for v in model.trainable]
    state = [_zeros(v) for v in model.state]
    metrics = [_zeros(v) for v in [*model.metrics, *model.unlisted]]
    counts = [tf.zeros([], v.dtype) for v in model.counts]
    scope = model.scope(trainable, state, metrics, step, counts)
    with looking_up(model.trainable, finds) as lookups, model.devices.looking(), scope:
        model.dry_run(mode, batch, trainable, state)
    return {i: lookup.ids for i, lookup in lookups.items()}


def _zero_rows(variable: keras.Variable) -> Find:
    def find(ids):
        return tf.zeros(tf.concat([tf.shape(ids), variable.shape[1:]], 0), variable.dtype)

    return find


def _zeros(variable: keras.Variable) -> tf.Tensor:
    # `tf.zeros` would put a constant of the variable's size into the graph.
    return tf.fill(variable.shape, tf.zeros([], variable.dtype))
