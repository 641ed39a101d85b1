"""The laws of every treatment: what a worker tells, and what servers and copies make of it."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfps.store.treatment import ADDED, FROZEN, LAST, ROWS, SUM, TRAIN, TREATMENTS, Treatment

PUSHED = [t for t in TREATMENTS if t.pushed]

# Whole numbers, so that floats add exactly.
values = st.lists(st.integers(-1000, 1000), min_size=3, max_size=3).map(
    lambda v: tf.constant(v, tf.float32)
)


def test_the_table_is_complete():
    assert set(TREATMENTS) == {TRAIN, ROWS, LAST, SUM, ADDED, FROZEN}
    concrete = {c for c in _subclasses(Treatment) if c.__module__ == Treatment.__module__}
    assert {type(t) for t in TREATMENTS} == concrete
    for t in TREATMENTS:
        assert not (t.trained and t.state)
        assert t.pushed == (t.trained or t.state)
        assert t.trained or not t.by_rows


@pytest.mark.parametrize("treatment", PUSHED, ids=repr)
@hypothesis.given(before=values, after=values)
def test_a_change_moves_a_copy_to_where_it_came_from(treatment, before, after):
    change = treatment.change(before, after)
    np.testing.assert_array_equal(treatment.moved(before, change, after), after)


@hypothesis.given(before=values, latest=values)
def test_what_is_frozen_does_not_move(before, latest):
    change = FROZEN.change(before, latest)
    np.testing.assert_array_equal(FROZEN.moved(before, change, latest), before)
    assert not np.any(change)


@pytest.mark.parametrize("treatment", TREATMENTS, ids=repr)
@hypothesis.given(value=values, before=values, after=values)
@hypothesis.settings(deadline=None)
def test_a_server_writes_what_a_copy_would_move_to(treatment, value, before, after):
    change = treatment.change(before, after)
    variable = tf.Variable(value)
    treatment.write(variable.handle, "float32", (3,), change)
    np.testing.assert_array_equal(variable, treatment.moved(value, change, after))


@pytest.mark.parametrize("treatment", TREATMENTS, ids=repr)
def test_only_what_can_have_a_mean_is_averaged(treatment):
    assert not treatment.averaged("bool")
    assert treatment.averaged("float32") == (treatment in (LAST, ADDED))


def _subclasses(cls):
    found = cls.__subclasses__()
    return {*found, *(s for c in found for s in _subclasses(c))}
