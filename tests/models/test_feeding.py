"""Datasets of sequences of several lengths."""

import numpy as np
import pytest

import tfps
from models import feeding


def test_sequences_of_one_length_come_together():
    lengths = [5, 1, 9, 2, 8, 3, 7]
    inputs = [np.full([n, 2], n, np.float32) for n in lengths]
    labels = [np.full([n // 2 + 1], n, np.int32) for n in lengths]
    found = list(feeding.by_length([inputs, labels], 3))
    assert [x.shape[:2] for x, _ in found] == [(4, 5), (3, 9)]
    x, y = found[1]
    np.testing.assert_array_equal(x[0, :, 0], [7] * 7 + [0] * 2)
    np.testing.assert_array_equal(y[0], [7] * 4 + [0])
    again = feeding.by_length([inputs, labels], 1, seed=1)
    orders = [[int(y[0, 0]) for _, y in again] for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(lengths)
    assert again.cardinality() == 7 and orders[0] != orders[1]


def test_nothing_makes_no_groups():
    assert feeding.groups_by_length([], 3) == []
    with pytest.raises(tfps.DataError, match="no examples that can be used"):
        feeding.by_length([[], []], 3)
