"""What a step does with the variables of a model, found by tracing one step."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps import _keras_optimizers
from tfps.model import optimizer_traits
from tfps.model.combination import Combination, combinations
from tfps.model.lookups import Find, depends, looking_up
from tfps.model.own_step import own_method
from tfps.model.stateless_model import StatelessModel


class Inspection(NamedTuple):
    """What a step does with the variables of a model.

    Attributes:
      connected: per trainable variable, whether the loss depends on it.
      updated: per state variable, whether the step writes it.
      tables: per trainable variable, whether the step only looks up rows of it.
      unlisted: variables that the step writes and that the model does not list, such as the states
        of a stateful RNN.
      added_to: per state variable, whether the step only adds to it, see `combinations`; empty if
        that is not known.
      assigned: per trainable variable, whether the step also assigns it; empty if it assigns none.
    """

    connected: list[bool]
    updated: list[bool]
    tables: list[bool]
    unlisted: Sequence[keras.Variable] = ()
    added_to: Sequence[bool] = ()
    assigned: Sequence[bool] = ()


def inspect(model: StatelessModel, batch_spec: Any, mode: str = "train") -> Inspection:
    """Finds what a step would do with the variables.

    Args:
      model: the model.
      batch_spec: nested `tf.TypeSpec`s of a batch.
      mode: the step: "train", "test" or "predict".

    Raises:
      ValueError: the loss depends on no trainable variable, as in Keras.
    """
    train = mode == "train"
    if not train and (own_method(model.model, "test") or own_method(model.model, "predict")):
        # Two ways to read the variables, and no need to look for tables: all are pulled.
        none, state = [False] * len(model.trainable), [False] * len(model.state)
        return Inspection(none, state, none, _unlisted(model, batch_spec, mode))
    # A candidate comes into the trace twice: as a whole, and as the rows that lookups read. It is a
    # table if nothing in the trace uses the whole.
    candidates = [
        i for i, v in enumerate(model.trainable) if len(v.shape) == 2 and v.constraint is None
    ]
    found = []

    model.counts = count_candidates(model) if train else []

    def trace(trainable, rows, state, metrics, counts, batch):
        rows = dict(zip(candidates, rows, strict=True))
        sources = [*trainable, *rows.values()]
        with looking_up(model.trainable, {i: _gather(r) for i, r in rows.items()}) as lookups:
            if train:
                step, scale = tf.constant(0, tf.int64), tf.constant(1.0)
                trained = model.differentiate(
                    trainable, state, metrics, step, scale, batch, sources, counts
                )
                gradients, updates = trained.gradients, trained.state
            else:
                model.predict(trainable, state, metrics, tf.constant(0, tf.int64), batch)
                gradients, updates = [None] * len(sources), [None] * len(state)
        inputs = {id(t.op) for t in [*sources, *state]}
        by_rows = dict(zip(candidates, gradients[len(trainable) :], strict=True))

        def is_table(i, whole):
            ids = lookups[i].ids if i in lookups else []
            # Ids that are computed from the weights are known only when the weights are.
            # Those in a branch or a loop are known only there.
            known = [t.graph is whole.graph and not depends(t, inputs) for t in ids]
            return bool(ids) and not whole.consumers() and all(known)

        connected = [
            g is not None or by_rows.get(i) is not None
            for i, g in enumerate(gradients[: len(trainable)])
        ]
        tables = [is_table(i, whole) for i, whole in enumerate(trainable)]
        updated = [u is not None for u in updates]
        added_to = are_added_to(state, updates)
        assigned = model.assigned_trainable() if train else []
        found.append(
            Inspection(connected, updated, tables, model.found_unlisted(), added_to, assigned)
        )

    with _warnings_to_come():
        tf.function(trace, autograph=False).get_concrete_function(
            _specs(model.trainable),
            _specs(model.trainable[i] for i in candidates),
            _specs(model.state),
            _specs([*model.metrics, *model.unlisted]),
            _specs(model.counts),
            batch_spec,
        )
    model.counts = model.counts_read()
    if train:
        require_trainable(model, found[0].connected)
    return found[0]


def count_candidates(model: StatelessModel) -> list[keras.Variable]:
    """The variables of `iterations` that a step may read; see `StatelessModel.counts`."""
    optimizers = _keras_optimizers.optimizers_of(model.model)
    return [_keras_optimizers.update_count(optimizer_traits.inner(o)) for o in optimizers]


def _unlisted(model: StatelessModel, batch_spec: Any, mode: str) -> list[keras.Variable]:
    """What a step of evaluation or prediction assigns that the model does not list."""

    def trace(trainable, state, metrics, batch):
        with model.scope(trainable, state, metrics, tf.constant(0, tf.int64)):
            model.dry_run(mode, batch, trainable, state)

    with _warnings_to_come():
        tf.function(trace, autograph=False).get_concrete_function(
            _specs(model.trainable),
            _specs(model.state),
            _specs([*model.metrics, *model.unlisted]),
            batch_spec,
        )
    return model.found_unlisted()


@contextlib.contextmanager
def _warnings_to_come() -> Iterator[None]:
    """Drops what the model's code warns of, which the trace of the step itself will warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _specs(variables: Iterable[keras.Variable]) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(v.shape, v.dtype) for v in variables]


def are_added_to(before: Sequence[tf.Tensor], after: Sequence[tf.Tensor | None]) -> list[bool]:
    """Per state variable, whether a traced step only adds to it.

    Args:
      before: the values before the step, placeholders of a graph.
      after: the values after the step, tensors of the same graph; None for the value before.
    """
    new = [b if a is None else a for b, a in zip(before, after, strict=True)]
    return [how is Combination.SUM for how in combinations(before, new)]


def require_trainable(model: StatelessModel, connected: Sequence[bool]) -> None:
    """Does what Keras does about a model of which little can be trained.

    Args:
      model: the model.
      connected: per trainable variable, whether the loss depends on it.

    Raises:
      ValueError: the loss depends on no variable.
    """
    if not model.trainable:
        warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        return
    require_gradients([v.path for v in model.trainable], [not c for c in connected])


def require_gradients(paths: Sequence[str], missing: Sequence[bool]) -> None:
    """Does what Keras does about variables without a gradient.

    Args:
      paths: of the variables.
      missing: per variable, whether it has no gradient.

    Raises:
      ValueError: no variable has a gradient.
    """
    if all(missing):
        raise ValueError("No gradients provided for any variable.")
    if any(missing):
        without = [path for path, is_missing in zip(paths, missing, strict=True) if is_missing]
        warnings.warn(
            f"Gradients do not exist for variables {without} when minimizing the loss. If using "
            "`model.compile()`, did you forget to provide a `loss` argument?",
            stacklevel=2,
        )


def _gather(rows: tf.Tensor) -> Find:
    return lambda ids: tf.gather(rows, ids)
