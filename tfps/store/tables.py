"""Tables: variables of which a step needs only the rows that its batch looks up.

Only these rows are pulled, each once, however often the batch names it; and what
is pushed is one gradient row for each of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.compression import Codec, Identity
from tfps.model.lookups import Rows


class Ids(NamedTuple):
    """The ids of a batch, each once.

    Attributes:
      unique: int [u], in the order of their first use.
      positions: see `Rows`.
      total: int32 scalar, ids in the batch with repetitions.
    """

    unique: tf.Tensor
    positions: list[tf.Tensor]
    total: tf.Tensor

    @classmethod
    def of(cls, lookups: Sequence[tf.Tensor]) -> "Ids":
        """From the ids of each lookup, of any shapes."""
        flat = [tf.cast(tf.reshape(ids, [-1]), tf.int64) for ids in lookups]
        unique, index = tf.unique(tf.concat(flat, 0))
        # Of constant ids, as those of positions often are, TensorFlow would know
        # the number, but not in all places; it must not in any.
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
      reads: (ps, its rows, there) of each part.
    """

    ids: Ids
    rows: Rows
    reads: list[tuple[int, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of a table that one ps holds.

    Attributes:
      bucket: index of the bucket that holds them, and nothing else.
      ps: index of the parameter server.
      begin: the first row.
    """

    bucket: int
    ps: int
    begin: int


class Table:
    """Routes rows between a worker and the servers that hold a table.

    Attributes:
      parts: by row.
    """

    def __init__(self, parts: list[Part], shape, dtype, push: Codec, pull: Codec):
        """Keeps its arguments.

        Args:
          parts: that hold the table together, by row.
          shape, dtype: of the table.
          push, pull: stateless codecs for rows.
        """
        self.parts = parts
        self._shape, self._dtype = tuple(shape), dtype
        self._push, self._pull = push, pull

    def pull(
        self, handles: dict[int, tf.Tensor], ids: Ids, seed: tf.Tensor, exact: bool = False
    ) -> Found:
        """Reads the rows of these ids.

        Args:
          handles: bucket -> resource handle of its values.
          ids: rows that do not exist are an error of the worker.
          seed: int32[2].
          exact: send them as they are.
        """
        codec = Identity() if exact else self._pull
        arrived, reads = [], []
        for part, wanted in zip(self.parts, self._deal(ids, ids.unique), strict=True):
            with tf.device(ps_device(part.ps)):
                rows = tf.raw_ops.ResourceGather(
                    resource=handles[part.bucket],
                    indices=wanted - part.begin,
                    dtype=tf.as_dtype(self._dtype),
                )
                payload, _ = codec.encode(rows, (), seed)
            reads.append((part.ps, rows))
            shape = (tf.size(wanted), *self._shape[1:])
            arrived.append(codec.decode(payload, shape, self._dtype))
        if len(arrived) == 1:
            rows = arrived[0]
        else:
            order = self._deal(ids, tf.range(tf.size(ids.unique)))
            rows = tf.dynamic_stitch(order, arrived)
        missing = ids.total - tf.size(ids.unique)
        rows = tf.pad(rows, [[0, missing], *([0, 0] for _ in self._shape[1:])])
        rows.set_shape([None, *self._shape[1:]])
        return Found(ids, Rows(rows, ids.positions), reads)

    def has(self, ids: Ids) -> tf.Tensor:
        """bool scalar: whether all rows of the ids exist."""
        exist = tf.logical_and(ids.unique >= 0, ids.unique < self._shape[0])
        return tf.reduce_all(exist)

    def encode(self, gradient: tf.Tensor, ids: Ids, seed: tf.Tensor) -> list[tuple]:
        """What the worker sends: for each part, (rows within it, payload)."""
        count = tf.size(ids.unique)
        per_part = zip(
            self.parts,
            self._deal(ids, ids.unique),
            self._deal(ids, gradient[:count]),
            strict=True,
        )
        sent = []
        for part, rows, values in per_part:
            payload, _ = self._push.encode(values, (), seed)
            sent.append((rows - part.begin, payload))
        return sent

    def decode(self, sent: tuple) -> tuple[tf.Tensor, tf.Tensor]:
        """(rows, gradients) of what `encode` sent to one part; called on its ps."""
        rows, payload = sent
        return rows, self._push.decode(payload, (tf.size(rows), *self._shape[1:]), self._dtype)

    def bytes_up(self, ids: Ids) -> tf.Tensor:
        """float64 scalar: what a worker sends in a step: its ids twice, and the gradients."""
        return self._bytes(ids, 2 * ids.unique.dtype.size, self._push)

    def bytes_down(self, ids: Ids) -> tf.Tensor:
        """float64 scalar: what a worker receives in a step."""
        return self._bytes(ids, 0, self._pull)

    def _bytes(self, ids, each, codec):
        row = codec.payload_bytes((1, *self._shape[1:]), self._dtype)
        return tf.cast(tf.size(ids.unique), tf.float64) * (each + row)

    def _deal(self, ids: Ids, values: tf.Tensor) -> list[tf.Tensor]:
        """Values that belong to the unique ids, by the part that holds the row."""
        if len(self.parts) == 1:
            return [values]
        part = tf.zeros_like(ids.unique, tf.int32)
        for p in self.parts[1:]:
            part += tf.cast(ids.unique >= p.begin, tf.int32)
        return tf.dynamic_partition(values, part, len(self.parts))
