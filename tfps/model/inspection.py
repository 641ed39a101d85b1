"""What a step does with the variables of a model, found by tracing one step."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps.model.lookups import Find, depends, looking_up
from tfps.model.stateless_model import StatelessModel


class Inspection(NamedTuple):
    """What a step does with the variables of a model.

    Attributes:
      connected: per trainable variable, whether the loss depends on it.
      updated: per state variable, whether the step writes it.
      tables: per trainable variable, whether the step only looks up rows of it.
      unlisted: variables that the step writes and that the model does not list, such as the states
        of a stateful RNN.
    """

    connected: list[bool]
    updated: list[bool]
    tables: list[bool]
    unlisted: list[keras.Variable]


def inspect(model: StatelessModel, batch_spec: Any, train: bool = True) -> Inspection:
    """Finds what a step would do with the variables.

    Args:
      model: the model.
      batch_spec: nested `tf.TypeSpec`s of a batch.
      train: whether the step is one of training. Otherwise it is one of prediction.
    """
    # A candidate comes into the trace twice: as a whole, and as the rows that lookups read. It is a
    # table if nothing in the trace uses the whole.
    candidates = [
        i for i, v in enumerate(model.trainable) if len(v.shape) == 2 and v.constraint is None
    ]
    found = []

    def trace(trainable, rows, state, metrics, batch):
        rows = dict(zip(candidates, rows, strict=True))
        sources = [*trainable, *rows.values()]
        with looking_up(model.trainable, {i: _gather(r) for i, r in rows.items()}) as lookups:
            if train:
                step, scale = tf.constant(0, tf.int64), tf.constant(1.0)
                trained = model.differentiate(
                    trainable, state, metrics, step, scale, batch, sources
                )
                gradients, updates = trained.gradients, trained.state
            else:
                model.predict(trainable, state, metrics, batch)
                gradients, updates = [None] * len(sources), [None] * len(state)
        inputs = {id(t.op) for t in [*sources, *state]}
        by_rows = dict(zip(candidates, gradients[len(trainable) :], strict=True))

        def is_table(i, whole):
            ids = lookups[i].ids if i in lookups else []
            # Ids that are computed from the weights are known only when the weights are.
            return bool(ids) and not whole.consumers() and not any(depends(t, inputs) for t in ids)

        connected = [
            g is not None or by_rows.get(i) is not None
            for i, g in enumerate(gradients[: len(trainable)])
        ]
        tables = [is_table(i, whole) for i, whole in enumerate(trainable)]
        updated = [u is not None for u in updates]
        found.append(Inspection(connected, updated, tables, model.found_unlisted()))

    def specs(variables):
        return [tf.TensorSpec(v.shape, v.dtype) for v in variables]

    tf.function(trace, autograph=False).get_concrete_function(
        specs(model.trainable),
        specs(model.trainable[i] for i in candidates),
        specs(model.state),
        specs([*model.metrics, *model.unlisted]),
        batch_spec,
    )
    return found[0]


def _gather(rows: tf.Tensor) -> Find:
    return lambda ids: tf.gather(rows, ids)
