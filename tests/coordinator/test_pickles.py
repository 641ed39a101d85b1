"""Errors of two classes go through pickles and copies, as a process pool or a log handler needs."""

import copy
import pickle

import pytest
import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures

INVALID = tf.errors.InvalidArgumentError(None, None, "not positive", {"payload": b"1"})
NAMED = failures.described(INVALID, 1, "10.0.0.3:2222")
LOST = failures.unavailable(errors.TaskLost("ps 0 is gone"), INVALID)


def noted():
    error = errors.WorkerError(1, "10.0.0.3:2222", "a message")
    error.add_note("a note")
    return error


ERRORS = [
    errors.ConfigError("a message"),
    errors.PortInUse(98, "a message"),
    noted(),
    NAMED,
    LOST,
    failures.of_input(NAMED),  # Three classes, two of them joined before.
    failures.of_input(ZeroDivisionError("division")),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__mro__[1].__name__)
@pytest.mark.parametrize("again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_an_error_is_what_it_was(error, again):
    other = again(error)
    assert type(other) is type(error)
    assert (str(other), other.args) == (str(error), error.args)
    assert vars(other).keys() == vars(error).keys()
    for name, value in vars(error).items():
        # Errors are not equal to their copies.
        assert repr(vars(other)[name]) == repr(value), name
    assert vars(other) is not vars(error)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_class_is_the_same(protocol):
    for error in ERRORS:
        kind = type(error)
        assert pickle.loads(pickle.dumps(kind, protocol)) is kind
        assert copy.copy(kind) is copy.deepcopy(kind) is kind
        assert type(pickle.loads(pickle.dumps(error, protocol))) is kind


def test_a_process_that_has_not_seen_the_class_joins_it(monkeypatch):
    pickled = pickle.dumps((type(NAMED), NAMED))
    monkeypatch.setattr(failures, "_classes", {})
    kind, error = pickle.loads(pickled)
    assert type(error) is kind is not type(NAMED)
    assert isinstance(error, errors.WorkerError)
    assert isinstance(error, tf.errors.InvalidArgumentError)
    assert (error.worker, error.address, error.message) == (1, "10.0.0.3:2222", str(NAMED))
    assert error.experimental_payloads == {"payload": b"1"}


def test_an_error_of_an_input_keeps_the_original():
    other = pickle.loads(pickle.dumps(failures.of_input(NAMED)))
    assert isinstance(other, _tf.ClosureInputError)
    assert isinstance(other.original_exception, tf.errors.InvalidArgumentError)
    assert (other.worker, other.address) == (1, "10.0.0.3:2222")
