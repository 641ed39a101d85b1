"""How variables are split over the parameter servers.

All of them are `tf.distribute.experimental.partitioners.Partitioner`s, so they also split
variables for TensorFlow's own strategy, which then gives the shards to the servers in turn.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfps import _tf, errors
from tfps.store.placement import Shard, VariableSpec, lightest_first

# mypy reads no types of TensorFlow, so to it these bases are of any type.
_partitioners: Any = tf.distribute.experimental.partitioners


def _require_positive(**values) -> None:
    for name, value in values.items():
        if value < 1:
            raise errors.ConfigError(f"{name}={value} must be at least 1")


class FixedShards(_partitioners.FixedShardsPartitioner):
    """Splits every variable into `num_shards`, or fewer if it has fewer rows.

    Raises:
      ConfigError: `num_shards` is below 1.
    """

    def __init__(self, num_shards: int):
        """Checks the number of shards."""
        _require_positive(num_shards=num_shards)
        super().__init__(num_shards)


class MinSize(_partitioners.MinSizePartitioner):
    """Splits into as many shards as possible of at least `min_shard_bytes` each.

    Args:
      min_shard_bytes: least number of bytes in a shard.
      max_shards: largest number of shards.
      bytes_per_string: assumed size of an element of dtype string.

    Raises:
      ConfigError: an argument is below 1.
    """

    def __init__(
        self, min_shard_bytes: int = 256 << 10, max_shards: int = 1, bytes_per_string: int = 16
    ):
        """Checks the sizes."""
        _require_positive(
            min_shard_bytes=min_shard_bytes,
            max_shards=max_shards,
            bytes_per_string=bytes_per_string,
        )
        super().__init__(min_shard_bytes, max_shards, bytes_per_string)


class MaxSize(_partitioners.MaxSizePartitioner):
    """Splits into as few shards as possible of at most `max_shard_bytes` each.

    Args:
      max_shard_bytes: largest number of bytes in a shard, as far as `max_shards` allows.
      max_shards: largest number of shards, or None for no limit.
      bytes_per_string: assumed size of an element of dtype string.

    Raises:
      ConfigError: an argument is below 1.
    """

    def __init__(
        self, max_shard_bytes: int, max_shards: int | None = None, bytes_per_string: int = 16
    ):
        """Checks the sizes."""
        _require_positive(
            max_shard_bytes=max_shard_bytes,
            max_shards=1 if max_shards is None else max_shards,
            bytes_per_string=bytes_per_string,
        )
        super().__init__(max_shard_bytes, max_shards, bytes_per_string)


class Balanced(_partitioners.Partitioner):
    """Gives every ps nearly the same bytes, splitting as few variables as that takes.

    The bytes of the parameters and of the optimizer's state are balanced. All variables are
    placed whole at first, the largest first. If the result is not balanced enough, the largest
    variables are taken out again, one more at a time, and their rows are given to the servers
    with the fewest bytes until all servers have equally many (water filling). So small variables
    stay whole, and the order in which variables were made does not matter. A row is never split:
    if a row is larger than the excess allowed, the result is as balanced as rows permit.

    TensorFlow's own strategy asks about one variable at a time. For it, each variable of at least
    `min_split_bytes` is split into one shard for every ps, and the shards go to the servers in
    turn.

    Attributes:
      max_imbalance: largest allowed ratio of the bytes of the fullest ps to the mean.
      min_split_bytes: size below which a variable is not split for TensorFlow's strategy.
    """

    def __init__(self, max_imbalance: float = 1.1, min_split_bytes: int = 64 << 10):
        """Checks the limit.

        Args:
          max_imbalance: see the attributes.
          min_split_bytes: see the attributes.

        Raises:
          ConfigError: `max_imbalance` is not above 1.
        """
        if not max_imbalance > 1:
            raise errors.ConfigError(
                f"max_imbalance={max_imbalance} must be above 1, which is perfect balance; try 1.1"
            )
        self.max_imbalance = max_imbalance
        self.min_split_bytes = min_split_bytes

    def place(self, specs: Sequence[VariableSpec], num_ps: int) -> list[Shard]:
        """Splits and places all variables of a model; see `placement.place`."""
        # Variables that travel whole come first, so that they are balanced by themselves and with
        # them the network. Then tables, of which only rows travel, balance the memory.
        loads = [0.0] * num_ps
        shards: list[Shard] = []
        for by_rows in (False, True):
            mine = [i for i, s in enumerate(specs) if s.by_rows == by_rows]
            if mine:
                placed, loads = self._balance(specs, mine, loads)
                shards += placed
        return sorted(shards, key=lambda s: (s.variable, s.begin))

    def _balance(self, specs, mine, before):
        """Shards of the variables `mine` and the loads with them, given those before."""
        order = sorted(
            (i for i in mine if specs[i].splittable and specs[i].shape and specs[i].shape[0] > 1),
            key=lambda i: (-specs[i].load(specs[i].size), specs[i].path, i),
        )
        best: tuple[float, list[Shard], list[float]] | None = None
        for poured in range(len(order) + 1):
            shards, loads = _with_poured(specs, mine, before, order[:poured])
            imbalance = max(loads) * len(loads) / (sum(loads) or 1.0)
            # Splitting more is worth it only where it gains something.
            if best is None or imbalance < best[0] - 1e-9:
                best = (imbalance, shards, loads)
            if imbalance <= self.max_imbalance:
                break
        assert best is not None  # The loop runs at least once.
        return best[1:]

    def __call__(
        self, shape: tf.TensorShape | Sequence[int], dtype: tf.DType | str, axis: int = 0
    ) -> list[int]:
        """Number of shards along each axis, for TensorFlow's strategy; see the class."""
        shape = tf.TensorShape(shape)
        shards = [1] * shape.rank
        nbytes = (shape.num_elements() or 0) * tf.as_dtype(dtype).size
        if nbytes >= self.min_split_bytes:
            shards[axis] = max(1, min(_tf.num_ps_in_scope(), shape[axis]))
        return shards


def _with_poured(specs, mine, before, poured):
    """(shards, loads) if of the variables `mine` only those in `poured` are split."""
    # Equal loads are ordered by path, so that the order of creation does not matter.
    kept = sorted(set(mine) - set(poured), key=lambda i: (specs[i].path, i))
    chosen, loads = lightest_first([specs[i].load(specs[i].size) for i in kept], before)
    shards = [Shard(i, 0, specs[i].size, p) for i, p in zip(kept, chosen, strict=True)]
    for i in reversed(poured):  # The smallest first, because the largest one evens out the most.
        spec = specs[i]
        width = spec.size // spec.shape[0]
        row = spec.load(width)
        begin = 0
        for p, rows in _fill(loads, spec.shape[0], row):
            shards.append(Shard(i, begin * width, (begin + rows) * width, p))
            loads[p] += rows * row
            begin += rows
    return shards, loads


def _fill(loads: Sequence[float], rows: int, row: float) -> list[tuple[int, int]]:
    """Gives rows to the servers with the fewest bytes until all have equally many.

    Args:
      loads: bytes on each ps so far.
      rows: number of rows to give.
      row: bytes of one row.

    Returns:
      (ps, rows) pairs with rows > 0, by ps.
    """
    order = sorted(range(len(loads)), key=lambda p: (loads[p], p))
    # The lowest k servers are filled to a common level that the next one exceeds.
    for k in range(1, len(order) + 1):
        level = (sum(loads[p] for p in order[:k]) + rows * row) / k
        if k == len(order) or level <= loads[order[k]]:
            break
    wanted = {p: (level - loads[p]) / row for p in order[:k]}
    dealt = {p: int(w) for p, w in wanted.items()}
    # Rounding down left some rows over; they go to the servers that lost most by it.
    left = rows - sum(dealt.values())
    for p in sorted(wanted, key=lambda p: (dealt[p] - wanted[p], p))[:left]:
        dealt[p] += 1
    return [(p, dealt[p]) for p in sorted(dealt) if dealt[p]]
