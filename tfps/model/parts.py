"""Parts of a batch: their bounds, and tensors cut into them and put together again."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfps import _keras_placement


class Bounds(NamedTuple):
    """Which examples of a batch a device computes.

    Attributes:
      begin, size: of the examples, int scalars. A batch of fewer examples than devices gives some
        devices an example that another one has too, since layers cannot do with none.
      kept: how many of them count.
      weight: float32 scalar, their share of the batch.
    """

    begin: Any
    size: Any
    kept: Any
    weight: Any


def bounds_of(first: Any, count: int) -> list[Bounds]:
    """The parts of a batch, as equal as can be.

    Args:
      first: a tensor with the batch's length.
      count: into how many parts.
    """
    n = first.shape[0]
    if n is None:
        n = _length(first)
        largest = tf.maximum
    else:
        largest = max
    edges = [n * i // count for i in range(count + 1)]
    found = []
    for begin, end in itertools.pairwise(edges):
        kept = end - begin
        weight = tf.cast(kept, tf.float32) / tf.cast(largest(n, 1), tf.float32)
        found.append(Bounds(begin, largest(kept, 1), kept, weight))
    return found


def _length(tensor: Any) -> tf.Tensor:
    """The length of a tensor's first axis, an int32 scalar."""
    if isinstance(tensor, tf.RaggedTensor):
        return tf.cast(tensor.nrows(), tf.int32)
    if isinstance(tensor, tf.SparseTensor):
        return tf.cast(tensor.dense_shape[0], tf.int32)
    return tf.shape(tensor)[0]


def piece_of(leaf: Any, bounds: Bounds, length: int | None) -> Any:
    """A device's part of an argument; what is no tensor with the batch's length stays whole.

    Args:
      leaf: of the arguments of a call.
      bounds: of the part.
      length: of the batch, or None if it is not known before.
    """
    if not tf.is_tensor(leaf) or leaf.shape.rank == 0 or leaf.shape[0] not in (None, length):
        return leaf
    piece = _slice(leaf, bounds.begin, bounds.size)
    mask = _keras_placement.mask_of(leaf)
    if mask is not None:
        _keras_placement.set_mask(piece, _slice(mask, bounds.begin, bounds.size))
    return piece


def _slice(tensor: Any, begin: Any, size: Any) -> Any:
    if isinstance(tensor, tf.SparseTensor):
        shape = tensor.dense_shape
        start = tf.one_hot(0, tf.size(shape), tf.cast(begin, tf.int64), dtype=tf.int64)
        rest = tf.concat([[tf.cast(size, tf.int64)], shape[1:]], 0)
        return tf.sparse.slice(tensor, start, rest)
    return tensor[begin : begin + size]


def together(pieces: Sequence[tuple[Any, Bounds]]) -> Any:
    """One tensor of what the devices have computed of their examples."""
    kept = [t if b.kept is b.size or _same(b) else _slice(t, 0, b.kept) for t, b in pieces]
    if isinstance(kept[0], tf.SparseTensor):
        return tf.sparse.concat(0, kept)
    return tf.concat(kept, 0)


def _same(bounds: Bounds) -> bool:
    """Whether it is known that all examples of a part count."""
    return not tf.is_tensor(bounds.kept) and bounds.kept == bounds.size


def mean_of(values: Sequence[tf.Tensor], weights: Sequence[tf.Tensor]) -> tf.Tensor:
    """The weighted mean of tensors of one shape."""
    dtype = values[0].dtype
    return tf.add_n([v * tf.cast(w, dtype) for v, w in zip(values, weights, strict=True)])
