"""What workers remember goes to other workers and other buckets without losing a gradient."""

import itertools

import hypothesis
import numpy as np
from hypothesis import strategies as st

from tfps.store.placement import Shard
from tfps.training.worker_memory import refitted
from tfps.worker.worker_step import WorkerMemory

SIZES = 5, 12, 1  # of three variables


def by_variable(memory, buckets):
    """Variable -> leaf -> the sum over the workers."""
    found = {}
    for one in memory:
        for i, leaves in one.residuals.items():
            for k, leaf in enumerate(leaves):
                offset = 0
                for s in buckets[i]:
                    whole = found.setdefault((s.variable, k), np.zeros(SIZES[s.variable]))
                    whole[s.begin : s.end] += leaf[offset : offset + s.size]
                    offset += s.size
    return found


@st.composite
def layouts(draw):
    """Buckets that hold each element of each variable once."""
    shards = []
    for variable, size in enumerate(SIZES):
        cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))})
        pairs = itertools.pairwise(cuts)
        shards += [Shard(variable, begin, end, 0) for begin, end in pairs]
    order = draw(st.permutations(shards))
    ends = sorted({0, len(order), *draw(st.lists(st.integers(0, len(order)), max_size=3))})
    return [tuple(order[a:b]) for a, b in itertools.pairwise(ends)]


@hypothesis.given(layouts(), layouts(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_the_sum_over_all_workers_stays(before, after, workers, now, seed):
    rng = np.random.default_rng(seed)
    sizes = [sum(s.size for s in shards) for shards in before]
    memory = [
        WorkerMemory(
            {i: tuple(rng.integers(0, 9, (2, n)).astype(np.float32)) for i, n in enumerate(sizes)},
            [],
        )
        for _ in range(workers)
    ]
    moved, lost = refitted(memory, before, after, now)
    assert not lost and len(moved) == now
    was, found = by_variable(memory, before), by_variable(moved, after)
    assert was.keys() == found.keys()
    for key, total in was.items():
        np.testing.assert_array_equal(found[key], total)


def test_what_is_no_number_for_an_element_stays_with_its_worker_or_is_left_out():
    one, two = [(Shard(0, 0, 6, 0),)], [(Shard(0, 0, 3, 0),), (Shard(0, 3, 6, 1),)]
    matrix = np.arange(3.0, dtype=np.float32)
    memory = [WorkerMemory({0: (np.full(6, 1.0, np.float32), matrix + w)}, []) for w in range(3)]
    fewer, lost = refitted(memory, one, one, 2)
    assert not lost
    assert [m.residuals[0][0][0] for m in fewer] == [2.0, 1.0]
    np.testing.assert_array_equal(fewer[0].residuals[0][1], matrix)
    more, _ = refitted(memory, one, one, 4)
    assert [m.residuals[0][0][0] for m in more] == [1.0, 1.0, 1.0, 0.0]
    moved, lost = refitted(memory, one, two, 3)
    assert lost == ["the state of codecs that work on matrices"]
    assert all(not m.residuals for m in moved)


def test_inner_optimizers_and_lost_workers():
    layout = [(Shard(0, 0, 6, 0),)]
    inner = [np.arange(6.0) + 1, np.array(3)]
    memory = [WorkerMemory({}, inner), None, WorkerMemory({}, [inner[0] * 2, inner[1]])]
    found, lost = refitted(memory, layout, layout, 3)
    assert not lost and [m.inner[0][0] for m in found] == [1.0, 2.0, 1.0]
    other = [(Shard(0, 0, 3, 0), Shard(0, 3, 6, 0))]
    found, lost = refitted(memory, layout, other, 1)
    assert lost == ["the inner optimizers of LocalSteps"] and found[0].inner == []
    assert refitted([None], layout, layout, 2) == ([], [])
