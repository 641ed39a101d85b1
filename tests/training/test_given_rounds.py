"""What is lost with a worker in a round."""

import types

import pytest

from tfps.training.given import Loss, Redo
from tfps.training.given_rounds import GivenRounds

WORK = types.SimpleNamespace(count=3)


@pytest.fixture
def given():
    rounds = GivenRounds()
    rounds.give(1, 7, WORK)
    return rounds


def test_a_worker_that_has_nothing_loses_nothing(given):
    assert given.lose(0, {0: -1, 1: -1}) == Loss([], [])


def test_a_work_is_given_back_before_its_round_is_due(given):
    assert given.lose(1, {0: 6, 1: 6}) == Loss([], [(WORK, 0)])
    assert given.take(1) is None


@pytest.mark.parametrize(
    ("last", "has"), [({0: 6, 1: 6}, set()), ({0: 9, 1: 6}, {0}), ({0: 6, 1: 10}, {1})]
)
def test_a_push_is_repeated_for_the_servers_that_lack_it(given, last, has):
    held = given.due(1, 9, 0.5, 2)
    (redo,), back = given.lose(1, last)
    assert redo == Redo(WORK, 0, 3, 9, frozenset(has), counts=False, open=False)
    assert back == []
    assert given.lost(9) is held
    assert (held.number, held.push, held.share, held.expected) == (7, 9, 0.5, 2)
    assert given.lose(1, last) == Loss([], [])


def test_a_push_that_all_servers_have_is_done(given):
    given.due(1, 9, 0.5, 2)
    assert given.lose(1, {0: 9, 1: 9}) == Loss([], [])
