"""How the rows of a table are stored on the servers."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

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

    A row has an id, by which the model looks it up, and a row number within the variables of the
    part that holds it: the part's bucket and, with one row for each of the bucket's, the
    optimizer's slots. `Table` moves ids and rows between workers and servers and knows only ids;
    only the storage knows how an id becomes a row number.

    To pull, a worker asks `exist` and `route`; then each ps does `locate` and `gather`, without a
    lock. To push, the worker asks `route` again; then each ps, under its lock, does `locate` with
    `insert`, lets the optimizer compute on what `gather` reads of values and slots, and writes
    that by `update`. `export` is asked by the chief, when the servers' state is read or written
    back and nothing else is under way.

    Attributes:
      parts: by the order in which `route` counts them; at least one.
    """

    @property
    def parts(self) -> Sequence[Part]: ...

    def exist(self, ids: tf.Tensor) -> tf.Tensor:
        """bool scalar: whether all of the ids, int64 [n], may be looked up."""

    def route(self, ids: tf.Tensor) -> tf.Tensor:
        """int32 [n]: for each of the ids, int64 [n], the index of the part that holds its row."""

    def locate(self, handles: ServerHandles, part: int, ids: tf.Tensor, insert: bool) -> tf.Tensor:
        """int64 [n]: the row number of each id. The caller enters the device of the part's ps.

        Args:
          handles: of the step.
          part: index of the part.
          ids: int64 [n], all of them routed to this part.
          insert: whether an id without a row gets one. If not, its row number is that of a row
            with the initial values.
        """

    def gather(self, handle: tf.Tensor, dtype: tf.DType | str, where: tf.Tensor) -> tf.Tensor:
        """Rows [n, ...] of one variable of a part. The caller enters the device of its ps.

        Args:
          handle: resource handle of the bucket or of a slot.
          dtype: element type of the variable.
          where: of `locate`.
        """

    def update(self, handle: tf.Tensor, where: tf.Tensor, rows: tf.Tensor) -> tf.Operation:
        """Replaces rows of one variable of a part; see `gather`.

        Returns:
          The operation that writes.
        """

    def export(self, part: int) -> np.ndarray:
        """int64 [n]: the id of each row of a part's variables, in the order of row numbers."""
