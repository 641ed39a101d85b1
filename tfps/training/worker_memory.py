"""What workers remember, for another number of workers, or another layout on the servers.

A residual is what a codec has not sent yet of the sum of gradients, so the sum over all workers is
what must not be lost: of workers that are no more, the others take over what they had. By variable,
it goes to whatever buckets the variables lie in now.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfps.store.placement import Shard
from tfps.worker.worker_step import WorkerMemory

Buckets = Sequence[tuple[Shard, ...]]
Leaves = dict[int, list[np.ndarray]]


def refitted(
    memory: Sequence[WorkerMemory | None], before: Buckets, after: Buckets, num_workers: int
) -> tuple[list[WorkerMemory], list[str]]:
    """The memory of each worker of now.

    Args:
      memory: per worker of before; None for one that had been lost.
      before, after: the shards of each bucket, then and now.
      num_workers: of now.

    Returns:
      (per worker, its memory; names of what had to be left out, because it cannot be laid out anew,
      such as the matrices of `PowerSGD`).
    """
    lost = []
    each = [_leaves(m) for m in memory if m is not None]
    inner = [list(m.inner) for m in memory if m is not None]
    if not each:
        return [], []
    if list(before) != list(after):
        moved = [_moved(leaves, before, after) for leaves in each]
        if any(one is None for one in moved):
            lost.append("the state of codecs that work on matrices")
        each = [one or {} for one in moved]
        if any(inner):
            lost.append("the inner optimizers of LocalSteps")
            inner = [[] for _ in inner]
    if len(each) != num_workers:
        sizes = [sum(s.size for s in shards) for shards in after]
        each = _dealt(each, sizes, num_workers)
        inner = [inner[w % len(inner)] for w in range(num_workers)]
    pairs = zip(each, inner, strict=True)
    return [WorkerMemory({i: tuple(v) for i, v in r.items()}, n) for r, n in pairs], lost


def _leaves(memory: WorkerMemory) -> Leaves:
    return {
        i: [np.asarray(t) for t in tf.nest.flatten(residual)]
        for i, residual in memory.residuals.items()
    }


def _moved(leaves: Leaves, before: Buckets, after: Buckets) -> Leaves | None:
    """The leaves by the buckets of now; None if a codec keeps more than numbers for elements."""
    whole: dict[tuple[int, int], np.ndarray] = {}  # (variable, which leaf) -> its elements
    ends = {s.variable: 0 for shards in (*before, *after) for s in shards}
    for shards in (*before, *after):
        for s in shards:
            ends[s.variable] = max(ends[s.variable], s.end)
    for i, held in leaves.items():
        size = sum(s.size for s in before[i])
        if any(leaf.size != size for leaf in held):
            return None
        for k, leaf in enumerate(held):
            offset = 0
            for s in before[i]:
                own = whole.setdefault((s.variable, k), np.zeros([ends[s.variable]], leaf.dtype))
                own[s.begin : s.end] = leaf.reshape([-1])[offset : offset + s.size]
                offset += s.size
    found: Leaves = {}
    for i, shards in enumerate(after):
        count = 1 + max((k for s in shards for v, k in whole if v == s.variable), default=-1)
        if count:
            found[i] = [_part(whole, shards, k) for k in range(count)]
    return found


def _part(whole: dict[tuple[int, int], np.ndarray], shards: Sequence[Shard], k: int) -> np.ndarray:
    dtype = next(whole[s.variable, k].dtype for s in shards if (s.variable, k) in whole)
    none = np.zeros([0], dtype)
    parts = []
    for s in shards:
        own = whole.get((s.variable, k), none)[s.begin : s.end]
        parts.append(own if len(own) else np.zeros([s.size], dtype))
    return np.concatenate(parts)


def _dealt(each: list[Leaves], sizes: list[int], num_workers: int) -> list[Leaves]:
    """Sums what workers of before had for workers of now, or gives new workers nothing."""

    def is_sum(i: int, leaf: np.ndarray) -> bool:
        return leaf.dtype.kind == "f" and leaf.size == sizes[i]

    def added(i: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return one + other if is_sum(i, one) else one

    dealt: list[Leaves] = []
    for worker in range(num_workers):
        mine: list[Leaves] = each[worker::num_workers]
        if not mine:
            mine = [{i: [_blank(is_sum(i, v), v) for v in held] for i, held in each[0].items()}]
        total = mine[0]
        for other in mine[1:]:
            total = {
                i: [added(i, a, b) for a, b in zip(held, other[i], strict=True)]
                for i, held in total.items()
            }
        dealt.append(total)
    return dealt


def _blank(is_sum: bool, value: np.ndarray) -> Any:
    return np.zeros_like(value) if is_sum else value
