"""What is lost with a worker, by what it was given and what each ps has of it."""

import pytest

from tfps.training.feeds import Work
from tfps.training.given import GivenWorks


def numbers(loss):
    """(number of the unit, who has it, whether its metrics still count) of each redo."""
    return [(redo.number, set(redo.has), redo.counts) for redo in loss.redo]


@pytest.fixture
def given():
    return GivenWorks(2)


def work(count=1):
    return Work(None, count, True)


def test_what_no_ps_has_is_given_back(given):
    one = work(3)
    given.give(0, 10, one)
    assert given.lose(0, {0: -1, 1: -1}) == ([], [(one, 0)])


def test_what_some_ps_have_is_done_again_for_the_others(given):
    one = work(4)
    given.give(0, 10, one)
    loss = given.lose(0, {0: 12, 1: 10})
    # Of the first one, which all have, only the report is lost.
    assert numbers(loss) == [(10, {0, 1}, True), (11, {0}, True), (12, {0}, True)]
    assert [redo.begin for redo in loss.redo] == [0, 1, 2]
    assert loss.back == [(one, 3)]


def test_what_was_reported_and_is_everywhere_is_forgotten(given):
    one = work(2)
    given.give(0, 10, one)
    given.done(0, [one], reported=True)
    assert given.lose(0, {0: 11, 1: 11}).redo == []


def test_a_report_that_comes_later_stands_for_those_before(given):
    works = [work(), work()]
    for i, one in enumerate(works):
        given.give(0, i, one)
        given.done(0, [one], reported=False)
    assert given.unreported(0) == 2
    given.give(0, 2, third := work())
    given.done(0, [third], reported=True)
    assert given.unreported(0) == 0
    assert given.lose(0, {0: 2, 1: 2}).redo == []


def test_a_push_that_comes_two_calls_later_is_still_known(given):
    works = [work() for _ in range(4)]
    for i, one in enumerate(works):
        given.give(0, i, one)
        given.done(0, works[max(0, i - 1) : i], reported=True)
    # The push of the last but one is on its way, and the last one was not trained on.
    loss = given.lose(0, {0: 2, 1: 1})
    assert numbers(loss) == [(2, {0}, False)]
    assert (works[3], 0) in loss.back


def test_an_exchange_is_one_unit(given):
    one = work(5)
    given.give(0, 10, one, exchange=True)
    loss = given.lose(0, {0: 10, 1: -1})
    assert numbers(loss) == [(10, {0}, True)] and loss.redo[0].count == 5
    assert loss.back == [(one, 5)]


@pytest.mark.parametrize("found", [0, 2])
def test_batches_that_a_dataset_did_not_have_are_not_lost(given, found):
    one = work(5)
    given.give(0, 10, one)
    given.found(0, one, found)
    given.done(0, [one], reported=True)
    last = 10 + found - 1 if found else -1
    assert given.lose(0, {0: last, 1: last}).redo == []


def test_an_exchange_that_a_dataset_ended(given):
    one = work(5)
    given.give(0, 10, one, exchange=True)
    given.found(0, one, 2)
    loss = given.lose(0, {0: 10, 1: -1})
    assert [redo.count for redo in loss.redo] == [2]


def test_only_the_worker_that_is_lost_has_nothing_any_more(given):
    given.give(0, 1, work())
    given.give(1, 2, other := work())
    given.lose(0, {0: -1})
    assert given.lose(0, {0: -1}) == ([], [])
    assert given.lose(1, {0: -1}).back == [(other, 0)]
