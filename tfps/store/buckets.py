"""Buckets: what travels and is updated together.

A step that handled every variable by itself would pay a message and a handful of small
operations for each. So shards of one ps, dtype and kind lie side by side in one flat server
variable, a bucket. A pull reads it, a push is applied to it, and an elementwise optimizer updates
it in a few operations, however many model variables are inside. The size of buckets is bounded, so
that a large model does not become one giant message.
"""

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from tfps.store.placement import Shard, VariableSpec
from tfps.store.treatment import Kind

BUCKET_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Shards stored as one server variable.

    Attributes:
      ps: index of the parameter server.
      dtype: element type.
      kind: what the shards have in common.
      shards: in the order in which they lie in the bucket.
      shape: of the server variable. It is the model variable's own shape if the bucket holds
        exactly one whole variable, in the variable's rank if it holds some of its rows alone, and
        (size,) otherwise.
    """

    ps: int
    dtype: str
    kind: Kind
    shards: tuple[Shard, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(shard.size for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.size * tf.as_dtype(self.dtype).size


def build_buckets(
    specs: Sequence[VariableSpec],
    shards: Sequence[Shard],
    kinds: Sequence[Kind],
    alone: Sequence[bool],
    intact: Sequence[bool] | None = None,
    bucket_bytes: int = BUCKET_BYTES,
) -> list[Bucket]:
    """Groups the shards into buckets.

    Args:
      specs: the variables.
      shards: of `place`; their order is kept within a bucket.
      kinds: per variable; only equal kinds share a bucket.
      alone: per variable, whether each shard needs a bucket of its own, in the
        variable's own rank (its update is not elementwise, or goes by rows).
      intact: per variable, true if its shards may not be cut to fit `bucket_bytes`. Variables in
        `alone` are never cut. By default, all other variables may be.
      bucket_bytes: size above which no bucket grows. A larger shard is cut, unless it may not be.

    Returns:
      Buckets by ps, then in the order of their first shard.
    """
    closed: list[Bucket] = []
    open_: dict[tuple, list[Shard]] = {}
    intact = alone if intact is None else [a or b for a, b in zip(alone, intact, strict=True)]
    shards = [
        piece
        for shard in shards
        for piece in _cut(shard, specs[shard.variable], bucket_bytes, intact[shard.variable])
    ]

    def close(key):
        members = open_.pop(key)
        first = members[0]
        spec = specs[first.variable]
        shape: tuple[int, ...] = (sum(s.size for s in members),)
        if len(members) == 1 and first.size == spec.size:
            shape = spec.shape
        elif alone[first.variable]:
            shape = (first.size // (spec.size // spec.shape[0]), *spec.shape[1:])
        closed.append(Bucket(first.ps, spec.dtype, kinds[first.variable], tuple(members), shape))

    for shard in shards:
        spec = specs[shard.variable]
        key: tuple = (shard.ps, spec.dtype, kinds[shard.variable])
        if alone[shard.variable]:
            key = (*key, shard)
        held = sum(s.size for s in open_.get(key, ()))
        if held and (held + shard.size) * spec.itemsize > bucket_bytes:
            close(key)
        open_.setdefault(key, []).append(shard)
    for key in list(open_):
        close(key)
    order = {shard: i for i, shard in enumerate(shards)}
    return sorted(closed, key=lambda b: (b.ps, order[b.shards[0]]))


def _cut(shard: Shard, spec: VariableSpec, bucket_bytes: int, intact: bool) -> list[Shard]:
    """The shard, cut into the fewest pieces of nearly equal size that fit into buckets."""
    pieces = 1 if intact else math.ceil(shard.size * spec.itemsize / bucket_bytes)
    if pieces <= 1:
        return [shard]
    size = math.ceil(shard.size / pieces)
    begins = range(shard.begin, shard.end, size)
    return [dataclasses.replace(shard, begin=b, end=min(b + size, shard.end)) for b in begins]


def pack(buckets: Sequence[Bucket], tensors: dict[int, tf.Tensor]) -> list[tf.Tensor]:
    """Lays variables out as buckets.

    Args:
      buckets: the buckets to fill.
      tensors: variable -> whole tensor, for every variable of which the buckets hold a part.

    Returns:
      A tensor for each bucket, of the bucket's shape.
    """
    flat = {i: tf.reshape(t, [-1]) for i, t in tensors.items()}

    def fill(bucket):
        # Slicing the whole is an identity, which Grappler and XLA remove.
        parts = [flat[s.variable][s.begin : s.end] for s in bucket.shards]
        return tf.reshape(parts[0] if len(parts) == 1 else tf.concat(parts, 0), bucket.shape)

    return [fill(bucket) for bucket in buckets]


def unpack(
    buckets: Sequence[Bucket], values: Sequence[tf.Tensor], specs: Sequence[VariableSpec]
) -> dict[int, tf.Tensor]:
    """The inverse of `pack`: variable -> whole tensor of the variable's shape."""
    parts: dict[int, list[tuple[int, tf.Tensor]]] = {}
    for bucket, value in zip(buckets, values, strict=True):
        flat = tf.reshape(value, [-1])
        offset = 0
        for shard in bucket.shards:
            piece = flat[offset : offset + shard.size]
            parts.setdefault(shard.variable, []).append((shard.begin, piece))
            offset += shard.size
    whole = {}
    for i, pieces in parts.items():
        ordered = [piece for _, piece in sorted(pieces, key=lambda p: p[0])]
        value = ordered[0] if len(ordered) == 1 else tf.concat(ordered, 0)
        whole[i] = tf.reshape(value, specs[i].shape)
    return whole
