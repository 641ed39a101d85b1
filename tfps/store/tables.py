"""Tables: variables of which a step needs only the rows that its batch looks up.

Only these rows are pulled, each once, however often the batch names its id; and what is pushed
is one gradient row for each of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfps.compression import Codec, Identity
from tfps.model.lookups import Rows
from tfps.store.handles import ServerHandles
from tfps.store.row_storage import RowStorage


class Ids(NamedTuple):
    """The ids of a batch, each once.

    Attributes:
      unique: int64 [u], in the order of their first use.
      positions: for each lookup, where in `unique` each of its ids is; see `Rows`.
      total: int32 scalar, number of ids in the batch, repetitions counted.
    """

    unique: tf.Tensor
    positions: list[tf.Tensor]
    total: tf.Tensor

    @classmethod
    def of(cls, lookups: Sequence[tf.Tensor]) -> "Ids":
        """The ids of all lookups of one table, integer tensors of any shapes."""
        flat = [tf.cast(tf.reshape(ids, [-1]), tf.int64) for ids in lookups]
        unique, index = tf.unique(tf.concat(flat, 0))
        # If the ids are constants, as those of positions often are, TensorFlow infers how many
        # there are in some places and not in others, and the shapes do not match. So the number
        # is hidden from it.
        unique = tf.compat.v1.placeholder_with_default(unique, [None])
        parts = tf.split(index, [tf.size(ids) for ids in flat], num=len(flat))
        positions = [tf.reshape(p, tf.shape(ids)) for p, ids in zip(parts, lookups, strict=True)]
        for p, ids in zip(positions, lookups, strict=True):
            p.set_shape(ids.shape)
        return cls(unique, positions, tf.size(index))


class Found(NamedTuple):
    """What a worker has pulled of a table.

    Attributes:
      ids: of the batch.
      rows: for the model.
      reads: (ps, the rows as they were read there) of each part.
    """

    ids: Ids
    rows: Rows
    reads: list[tuple[int, tf.Tensor]]


class SentRows(NamedTuple):
    """What a worker pushes of a table to one part.

    Attributes:
      ids: int64 [n], each once.
      payload: of the codec, for gradients [n, ...].
    """

    ids: tf.Tensor
    payload: tuple


class Table:
    """Moves rows between a worker and the servers that hold a table.

    Attributes:
      storage: where the rows are.
    """

    def __init__(
        self, storage: RowStorage, row_shape: tuple[int, ...], dtype: str, push: Codec, pull: Codec
    ):
        """Creates nothing on the servers: the rows are in the buckets of the plan.

        Args:
          storage: where the rows are.
          row_shape: of one row.
          dtype: element type of the table.
          push, pull: codecs for rows, without a state.
        """
        self.storage = storage
        self._row_shape, self._dtype = tuple(row_shape), dtype
        self._push, self._pull = push, pull
        self._part_of = {part.bucket: k for k, part in enumerate(storage.parts)}

    def recode(self, push: Codec, pull: Codec) -> None:
        """Lets rows travel through other codecs, in what is traced from now on."""
        self._push, self._pull = push, pull

    def wanted(self, ids: Ids) -> list[tf.Tensor]:
        """For each part, int64 [n], those of the ids whose rows it holds."""
        return self._deal(ids, ids.unique)

    def read(
        self, handles: ServerHandles, k: int, wanted: tf.Tensor, seed: tf.Tensor, exact: bool
    ) -> tuple[tf.Tensor, tuple]:
        """(rows as they are, what its codec sends) of a part; the caller enters the part's device.

        Args:
          handles: of the step.
          k: index of the part.
          wanted: int64 [n], ids; one that does not exist is an error of the call.
          seed: int32 [2], for the codec.
          exact: whether the rows are sent as they are, whatever the codec.
        """
        rows = self.storage.read(handles, k, wanted, self._dtype)
        payload, _ = self._codec(exact).encode(rows, (), seed)
        return rows, payload

    def found(
        self, ids: Ids, wanted: list[tf.Tensor], read: list[tuple[tf.Tensor, tuple]], exact: bool
    ) -> Found:
        """Puts together what all parts have sent.

        Args:
          ids: of the batch.
          wanted: of `wanted`.
          read: of `read`, for each part: the rows on their ps, and what has arrived here.
          exact: as for `read`.
        """
        codec = self._codec(exact)
        arrived = [
            codec.decode(payload, self._shape(mine), self._dtype)
            for mine, (_, payload) in zip(wanted, read, strict=True)
        ]
        if len(arrived) == 1:
            rows = arrived[0]
        else:
            order = self._deal(ids, tf.range(tf.size(ids.unique)))
            rows = tf.dynamic_stitch(order, arrived)
        missing = ids.total - tf.size(ids.unique)
        rows = tf.pad(rows, [[0, missing], *([0, 0] for _ in self._row_shape)])
        rows.set_shape([None, *self._row_shape])
        reads = [(part.ps, r) for part, (r, _) in zip(self.storage.parts, read, strict=True)]
        return Found(ids, Rows(rows, ids.positions), reads)

    def has(self, ids: Ids) -> tf.Tensor:
        """bool scalar: whether all of the ids may be looked up."""
        return self.storage.exist(ids.unique)

    def encode(self, gradient: tf.Tensor, ids: Ids, seed: tf.Tensor) -> dict[int, SentRows]:
        """What the worker sends, by bucket.

        Args:
          gradient: [at least u, ...], a row for each of `ids.unique`, in its order.
          ids: that were pulled.
          seed: int32 [2], for the codec.
        """
        wanted = self.wanted(ids)
        gradients = self._deal(ids, gradient[: tf.size(ids.unique)])
        sent = {}
        for part, rows, values in zip(self.storage.parts, wanted, gradients, strict=True):
            payload, _ = self._push.encode(values, (), seed)
            sent[part.bucket] = SentRows(rows, payload)
        return sent

    def decode(self, sent: SentRows) -> tf.Tensor:
        """Gradients [n, ...], a row for each id, of what `encode` sent to one bucket."""
        return self._push.decode(sent.payload, self._shape(sent.ids), self._dtype)

    def part(self, bucket: int) -> int:
        """The index of the part that is in a bucket."""
        return self._part_of[bucket]

    def exported(self, bucket: int) -> np.ndarray:
        """int64 [n]: the id of each row of one of the table's buckets; see `RowStorage.export`."""
        return self.storage.export(self._part_of[bucket])

    def bytes_up(self, ids: Ids) -> tf.Tensor:
        """float64 scalar: bytes that a worker sends in a step: its ids twice, and gradients."""
        return self._bytes(ids, 2 * ids.unique.dtype.size, self._push)

    def bytes_down(self, ids: Ids) -> tf.Tensor:
        """float64 scalar: bytes that a worker receives in a step."""
        return self._bytes(ids, 0, self._pull)

    def _bytes(self, ids, each, codec):
        row = codec.payload_bytes((1, *self._row_shape), self._dtype)
        return tf.cast(tf.size(ids.unique), tf.float64) * (each + row)

    def _codec(self, exact):
        return Identity() if exact else self._pull

    def _shape(self, ids) -> tuple:
        return (tf.size(ids), *self._row_shape)

    def _deal(self, ids: Ids, values: tf.Tensor) -> list[tf.Tensor]:
        """Values that belong to the unique ids, by the part that holds the row."""
        parts = len(self.storage.parts)
        if parts == 1:
            return [values]
        return tf.dynamic_partition(values, self.storage.route(ids.unique), parts)
