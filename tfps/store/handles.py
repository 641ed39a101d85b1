"""The resource handles of all that is on the servers: arguments of every step.

A step takes handles as arguments, never as captures: a step that was traced once goes on
after a variable was replaced. To the worker's code handles are opaque; it only passes them on.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import tensorflow as tf

from tfps.embeddings.handles import TableHandles
from tfps.embeddings.history import HistoryHandles
from tfps.store.mailbox import SenderHandles


class LossScaleHandles(NamedTuple):
    """The dynamic loss scale, on ps 0.

    Attributes:
      scale: of the float32 scalar by which workers multiply the loss.
      good_steps: of the int32 scalar, steps without an overflow since the scale last changed.
    """

    scale: tf.Tensor
    good_steps: tf.Tensor


class DenseHandles(NamedTuple):
    """What a part of a dense table consists of.

    Attributes:
      columns: of the values, and of each state of the optimizer that has rows.
      history: which rows change.
    """

    columns: list[tf.Tensor]
    history: HistoryHandles


class StoreHandles(NamedTuple):
    """What `ParameterStore` made.

    Attributes:
      values: bucket -> its values.
      slots: ps -> the state of its optimizer, in the order of `ServerOptimizer.state`; only ps
        that train buckets as a whole.
      row_slots: bucket -> the state of its row optimizer, in the order of `RowOptimizer.state`.
      locks: per ps, the mutex under which pushes are applied, against what the chief writes.
      tables: bucket of a table that grows -> all that the part consists of.
      versions: per ps, an int64 scalar: the updates that were made there.
      loss_scale: none if the loss is not scaled dynamically.
      histories: bucket of a dense table of which it is noted which rows change -> its handles.
    """

    values: dict[int, tf.Tensor]
    slots: dict[int, list[tf.Tensor]]
    row_slots: dict[int, list[tf.Tensor]]
    tables: dict[int, TableHandles]
    locks: list[tf.Tensor | None]
    versions: list[tf.Tensor | None]
    loss_scale: LossScaleHandles | None
    histories: dict[int, DenseHandles] = {}  # noqa: RUF012 - Nobody changes it.


class CountHandles(NamedTuple):
    """The counts of a ps's open round.

    Attributes:
      arrived: of an int32 scalar, pushes that have come.
      good: of an int32 scalar, those of them whose gradients did not overflow.
    """

    arrived: tf.Tensor
    good: tf.Tensor


class RoundHandles(NamedTuple):
    """What `Summed` made for rounds. All are empty where pushes are applied as they come.

    Attributes:
      sums: bucket -> the sum of the round's pushes, of the bucket's shape.
      touched: bucket of a table that is updated by rows -> bool [rows], which rows were pushed.
      waiting: bucket of a table that grows -> the queue of the round's pushes, [ids, gradients]
        each. It has no sum.
      counts: per ps.
    """

    sums: dict[int, tf.Tensor]
    touched: dict[int, tf.Tensor]
    waiting: dict[int, tf.Tensor]
    counts: list[CountHandles | None]


class ServerHandles(NamedTuple):
    """All handles of a step.

    Attributes:
      store: values, optimizers and locks.
      outer: ps -> the state of the outer optimizer of `LocalSteps`, in the order of
        `ServerOptimizer.state`; empty without one.
      round: the open round.
      sender: what one worker sends its pushes with; None for what only reads.
    """

    store: StoreHandles
    outer: dict[int, list[tf.Tensor]]
    round: RoundHandles
    sender: SenderHandles | None = None


_T = TypeVar("_T")


def on_one(handles: ServerHandles, p: int, ps_of: Sequence[int]) -> ServerHandles:
    """The handles of what is on one ps; None in the places of the others.

    Args:
      handles: of everything.
      p: index of the ps.
      ps_of: per bucket, its ps.
    """

    def mine(buckets: Mapping[int, _T]) -> dict[int, _T]:
        return {i: one for i, one in buckets.items() if ps_of[i] == p}

    def only(each: Sequence[_T | None]) -> list[_T | None]:
        return [one if k == p else None for k, one in enumerate(each)]

    store = handles.store
    return ServerHandles(
        StoreHandles(
            values=mine(store.values),
            slots={k: one for k, one in store.slots.items() if k == p},
            row_slots=mine(store.row_slots),
            tables=mine(store.tables),
            locks=only(store.locks),
            versions=only(store.versions),
            loss_scale=store.loss_scale if p == 0 else None,
            histories=mine(store.histories),
        ),
        {k: one for k, one in handles.outer.items() if k == p},
        RoundHandles(
            mine(handles.round.sums),
            mine(handles.round.touched),
            mine(handles.round.waiting),
            only(handles.round.counts),
        ),
    )
