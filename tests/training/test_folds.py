"""Folds and shuffle splits: scikit-learn's meanings."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import tfps
from tfps.data import kfold, shuffle_split


def lists(pairs):
    return [(list(train), list(test)) for train, test in pairs]


def test_folds_of_consecutive_items():
    assert lists(kfold(4, 2)) == [([2, 3], [0, 1]), ([0, 1], [2, 3])]
    first, second = lists(kfold("abcde", 2))
    assert first == (["d", "e"], ["a", "b", "c"]) and second == (first[1], first[0])


@given(n=st.integers(2, 40), data=st.data(), seed=st.none() | st.integers(0, 100))
def test_every_item_validates_once(n, data, seed):
    k = data.draw(st.integers(2, n))
    folds = lists(kfold(n, k, seed))
    assert folds == lists(kfold(n, k, seed))
    assert sorted(i for _, test in folds for i in test) == list(range(n))
    sizes = [len(test) for _, test in folds]
    assert sizes == [n // k + 1] * (n % k) + [n // k] * (k - n % k)
    for train, test in folds:
        assert sorted(train + test) == list(range(n))
        assert train == sorted(train) and test == sorted(test)


def test_draws_are_those_of_scikit_learn():
    # The example of scikit-learn's documentation of ShuffleSplit.
    assert lists(shuffle_split(6, 5, test_size=0.25, seed=0)) == [
        ([1, 3, 0, 4], [5, 2]),
        ([4, 0, 2, 5], [1, 3]),
        ([1, 2, 4, 0], [3, 5]),
        ([3, 4, 1, 0], [5, 2]),
        ([3, 5, 1, 0], [2, 4]),
    ]
    assert [len(train) for train, _ in shuffle_split(6, 5, 0.25, 0.5, seed=0)] == [3] * 5


@given(n=st.integers(2, 40), seed=st.integers(0, 100))
def test_draws_do_not_overlap(n, seed):
    for train, test in shuffle_split(n, 3, seed=seed):
        assert len(test) == -(-n // 10) and len(train) == n - len(test)
        assert sorted([*train, *test]) == list(range(n))
    for train, test in shuffle_split([f"f{i}" for i in range(n)], 2, test_size=1, seed=seed):
        assert len(set(train) | set(test)) == n


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kfold(3, 4), r"k=4 folds of 3 item\(s\)"),
        (lambda: kfold(3, 1), "k=1 folds"),
        (lambda: shuffle_split(3, 0), "n_splits=0"),
        (lambda: shuffle_split(3, test_size=1.5), "test_size=1.5 is no share"),
        (lambda: shuffle_split(3, test_size=3), "make 0 and 3 of 3"),
        (lambda: shuffle_split(3, test_size=2, train_size=2), "make 2 and 2 of 3"),
    ],
)
def test_what_is_refused_at_once(make, message):
    with pytest.raises(tfps.DataError, match=message):
        make()


def test_another_draw_without_a_seed():
    draws = {tuple(np.concatenate(pair)) for _ in range(4) for pair in shuffle_split(50, 1)}
    assert len(draws) == 4
