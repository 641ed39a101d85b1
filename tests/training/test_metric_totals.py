"""Metrics that workers carry through an epoch, of whom some are gone when it goes on."""

import types

import numpy as np
import pytest

from tfps.training.metric_totals import MetricTotals
from tfps.worker.tally import Tally


class Merging:
    """The metrics of all workers are summed; each carries its own."""

    additive = False

    def merge(self, start, states):
        return [sum(values) for values in zip(*states, strict=True)]


def totals(run_eagerly=False):
    model = types.SimpleNamespace(reset_metrics=lambda: None, run_eagerly=run_eagerly)
    program = types.SimpleNamespace(model=model)
    program.metrics = [types.SimpleNamespace(numpy=lambda: np.float32(0))]
    return MetricTotals(program, Merging())


def report(totals, worker, value):
    totals.add(types.SimpleNamespace(tally=Tally(), metrics=[np.float32(value)], worker=worker))


def restored(latest, living, **settings):
    one = totals(**settings)
    latest = {w: [np.float32(value)] for w, value in latest.items()}
    one.restore(Tally(), [np.float32(0)], latest, [], living)
    return one


def value(totals):
    (found,) = totals._values()
    return found


def test_a_worker_that_is_not_back_keeps_what_it_had_reported():
    one = restored({0: 1.0, 1: 10.0}, living={0})
    assert one.carried_by(0) == [1.0] and one.carried_by(1) == [0.0]
    report(one, 1, 100.0)  # It is back, and has begun with nothing.
    report(one, 0, 2.0)
    assert value(one) == 112.0


@pytest.mark.parametrize("latest", [{-1: 1.0, -2: 2.0, 1: 4.0}, {-2: 1.0, 1: 2.0, 2: 4.0, 3: 8.0}])
def test_fewer_workers_lose_nothing(latest):
    """Also where others had been lost before."""
    one = restored(latest, living={0})
    assert value(one) == sum(latest.values())
    report(one, 0, 100.0)
    assert value(one) == 100.0 + sum(latest.values())


def test_who_lives_goes_on():
    one = restored({0: 1.0, 1: 10.0}, living={0, 1})
    report(one, 1, 11.0)
    assert value(one) == 12.0


def test_a_state_that_all_share_goes_on_without_the_first_worker():
    assert restored({0: 5.0}, living={1}, run_eagerly=True).carried_by(0) == [5.0]
