"""The tables of a store that snapshots copy in pieces, because they are large or may become so."""

import functools
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.embeddings.history import History
from tfps.embeddings.part import TablePart
from tfps.model.server_optimizer import RowOptimizer
from tfps.store.dense_rows import DenseRows
from tfps.store.handles import DenseHandles
from tfps.store.plan import Plan
from tfps.store.row_pieces import DenseContents, GrowingContents, RowPieces


class LargeTables:
    """The parts of tables of which it is noted which rows change.

    These are the parts of tables that grow, and those of dense tables that are updated by rows and
    have more bytes than a piece.

    Attributes:
      pieces: bucket -> how the part is copied.
      cut: number of the newest cut.
    """

    def __init__(
        self,
        plan: Plan,
        piece_bytes: int | None,
        stored: Sequence[keras.Variable],
        optimizers: Mapping[int, RowOptimizer],
        growing: Mapping[int, TablePart],
        locks: Sequence[tf.Tensor],
    ):
        """Creates what is needed on the servers.

        Args:
          plan: of the store.
          piece_bytes: about how many bytes are copied at once; None if there are no snapshots.
          stored, growing: of the store.
          optimizers: the store's `row_optimizers`.
          locks: per ps, the present mutex under which pushes are applied.
        """
        self.cut = 0
        self.pieces: dict[int, RowPieces] = {}
        self._plan, self._stored, self._optimizers = plan, stored, optimizers
        self._growing = growing
        self._histories: dict[int, History] = {}
        if piece_bytes is None:
            return

        def pieces_of(i, contents, handles):
            ps = plan.buckets[i].ps
            return RowPieces(i, ps, contents, handles, lambda: locks[ps], piece_bytes)

        for i in growing:
            table = plan.growing[i].tables[plan.growing[i].part_of(i)]
            handles: Callable[[], Any] = functools.partial(lambda i: growing[i].handles, i)
            self.pieces[i] = pieces_of(i, GrowingContents(table), handles)
        for i in [i for i in optimizers if i not in growing]:
            columns = [tf.TensorSpec([None, *v.shape[1:]], v.dtype) for v in self._columns(i)]
            contents = DenseContents(plan.buckets[i].shape[0], columns)
            pieces = pieces_of(i, contents, functools.partial(self._handles_of, i))
            if pieces.row_bytes * contents.num_rows > piece_bytes:
                self.pieces[i] = pieces
                self._dense_rows(i).contents[i] = contents
                self._create(i, contents)
        before = weakref.WeakMethod(self.before_writing)
        for remote in plan.remote.values():
            # It outlives the store.
            remote.before_writing = lambda: (call := before()) and call()

    def handles(self) -> dict[int, DenseHandles]:
        """See `StoreHandles.histories`."""
        return {i: self._handles_of(i) for i in self._histories}

    def before_writing(self, variable: Any = None) -> None:
        """To be called before the chief writes to a server variable.

        Args:
          variable: the server variable; None for all.
        """
        for i, pieces in self.pieces.items():
            held = [] if i in self._growing else [self._stored[i], *self._optimizers[i].state]
            if variable is None or any(variable is one for one in held):
                pieces.keep_all()

    def renew(self, servers: Collection[int]) -> None:
        """Makes the histories of dense tables on some servers anew; those that grow are parts.

        Args:
          servers: indices of the parameter servers.
        """
        for i, pieces in self.pieces.items():
            if pieces.ps in servers:
                pieces.renewals += 1
                if i in self._histories:
                    self._create(i, self._dense_rows(i).contents[i])

    def _create(self, bucket: int, contents: DenseContents) -> None:
        with tf.device(ps_device(self._plan.buckets[bucket].ps)):
            dtypes = [spec.dtype for spec in contents.columns]
            self._histories[bucket] = History([contents.num_rows], dtypes, self.cut)

    def _dense_rows(self, bucket: int) -> DenseRows:
        storage = self._plan.of_tables[bucket].storage
        assert isinstance(storage, DenseRows)
        return storage

    def _columns(self, bucket: int) -> list[tf.Variable]:
        """The values, and the states of the optimizer that have rows."""
        optimizer = self._optimizers[bucket]
        states = zip(optimizer.state, optimizer.by_row, strict=True)
        return [self._stored[bucket].value, *(v for v, by_row in states if by_row)]

    def _handles_of(self, bucket: int) -> DenseHandles:
        columns = [v.handle for v in self._columns(bucket)]
        return DenseHandles(columns, self._histories[bucket].handles)
