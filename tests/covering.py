"""Parametrizations that cover what several arguments can be, without all of their products."""

import itertools

import pytest


def covering(names: str, *axes, strength: int = 2):
    """A mark that runs a test with a few combinations of arguments, and in a soak with all.

    The few are chosen one after the other, each with as many new tuples of values as any other
    has, until every tuple of `strength` arguments' values has appeared.

    Args:
      names: of the arguments, as `pytest.mark.parametrize` takes them.
      *axes: the values of each argument.
      strength: 1 covers each value, 2 (pairwise) each pair of two arguments' values.

    Returns:
      A `pytest.mark.parametrize` whose further combinations have the mark `soak`.
    """
    everything = list(itertools.product(*(range(len(axis)) for axis in axes)))
    columns = list(itertools.combinations(range(len(axes)), strength))
    few, seen = set(), set()

    def tuples(combination):
        return {(c, *(combination[i] for i in c)) for c in columns}

    while best := max(everything, key=lambda c: len(tuples(c) - seen), default=None):
        if not tuples(best) - seen:
            break
        few.add(best)
        seen |= tuples(best)
    values = [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, combination, strict=True)),
            marks=[] if combination in few else pytest.mark.soak,
        )
        for combination in everything
    ]
    return pytest.mark.parametrize(names, values)
