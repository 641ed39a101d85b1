"""How the rows of a table are stored on the servers."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfps.store.handles import ServerHandles


class Part(NamedTuple):
    """The rows of a table that one ps holds.

    Attributes:
      bucket: index of the bucket that holds these rows and nothing else.
      ps: index of the parameter server.
    """

    bucket: int
    ps: int


class RowStorage(Protocol):
    """Finds, reads, writes and lists the rows of one table.

    A row has an id, by which the model looks it up, and a place within the variables of the part
    that holds it: the values and, with one row for each of the values', the optimizer's slots.
    `Table` moves ids and rows between workers and servers and knows only ids; only the storage
    knows how an id becomes a place.

    To pull, a worker asks `exist` and `route`; then each ps does `read`, without a lock. To push,
    the worker asks `route` again; then each ps, in its loop, does `insert`, lets the optimizer
    compute on what `gather` reads of values and slots, writes that by `update`, and ends with
    `commit`. `export` is asked by the chief, when the servers' state is read or written back and
    nothing else is under way.

    Attributes:
      parts: by the order in which `route` counts them; at least one.
    """

    @property
    def parts(self) -> Sequence[Part]: ...

    def exist(self, ids: tf.Tensor) -> tf.Tensor:
        """bool scalar: whether all of the ids, int64 [n], may be looked up."""

    def route(self, ids: tf.Tensor) -> tf.Tensor:
        """int32 [n]: for each of the ids, int64 [n], the index of the part that holds its row."""

    def read(
        self, handles: ServerHandles, part: int, ids: tf.Tensor, dtype: tf.DType | str
    ) -> tf.Tensor:
        """Rows [n, ...] of ids, as the table has them; of an id without a row, its initial row.

        It changes nothing. The caller enters the device of the part's ps.

        Args:
          handles: of the step.
          part: index of the part.
          ids: int64 [n], all of them routed to this part.
          dtype: element type of the table.
        """

    def insert(
        self, handles: ServerHandles, part: int, ids: tf.Tensor
    ) -> tuple[Any, tf.Tensor | None]:
        """Finds places for ids to write to; one without a row gets one, if there is room.

        It also notes that these rows change, where that is asked for (`row_pieces`).

        Args:
          handles, part, ids: see `read`; no id is there twice.

        Returns:
          (where: nested tensors for the methods below, of m ids; int64 [m], which of the ids have
          a place, or None if all have).
        """

    def gather(
        self,
        handles: ServerHandles,
        part: int,
        where: Any,
        dtype: tf.DType | str,
        state: int | None = None,
    ) -> tf.Tensor:
        """Rows [m, ...] of the values or of a slot, for the optimizer to compute with.

        Args:
          handles, part: see `read`.
          where: of `insert`.
          dtype: element type of the rows.
          state: which state of the optimizer; None for the values.
        """

    def update(
        self,
        handles: ServerHandles,
        part: int,
        where: Any,
        rows: tf.Tensor,
        state: int | None = None,
    ) -> list[tf.Operation]:
        """Replaces rows; see `gather`. Returns the operations that write."""

    def keep_all(self, handles: ServerHandles, part: int) -> list[tf.Operation]:
        """What has to be over before all rows of a part are replaced; see `row_pieces`.

        Args:
          handles, part: see `read`.
        """

    def commit(self, handles: ServerHandles, part: int, where: Any) -> list[tf.Operation]:
        """Ends an update, after all of it was written; returns the operations that write."""

    def export(self, part: int) -> np.ndarray:
        """int64 [n]: the id of each row of a part's variables, in the order of row numbers."""
