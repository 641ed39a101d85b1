import pytest
import tensorflow as tf

from tfps import errors
from tfps.cluster import failures


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("plain [Op:Foo]", "plain"),
        ("", "no message"),
        (None, "no message"),
        (
            "Graph execution error:\n\nDetected at node x defined at (most recent call last):\n"
            '  File "a.py", line 1\n\nassertion failed: [bad]\n\t [[{{node x}}]] [Op:__inference]',
            "assertion failed: [bad]",
        ),
        (
            'in user code:\n\n    File "a.py", line 1\n\n    InvalidArgumentError: bad shape\n',
            "InvalidArgumentError: bad shape",
        ),
        (
            "<stack traces unavailable>\nEnd of sequence\n\t [[{{node IteratorGetNext}}]]",
            "End of sequence",
        ),
    ],
)
def test_summary(message, said):
    assert errors.summary(message) == said


def test_a_copy_to_a_task_that_is_gone_fails_by_the_network():
    gone = RuntimeError(
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to "
        "connect to remote host: Connection refused"
    )
    assert failures.is_of_network(gone)
    own = RuntimeError("the model says that this cannot be")
    assert not failures.is_of_network(own)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.UnavailableError(None, None, "anything"),
        tf.errors.AbortedError(None, None, "anything"),
        tf.errors.CancelledError(None, None, "anything"),
        *(
            tf.errors.InvalidArgumentError(None, None, said)
            for said in (
                "Unable to find a context_id matching",
                "/job:worker/replica:0/task:0/device:CPU:0 unknown device.",
                "Unable to find the relevant tensor remote_handle: Op ID: 1",
                "primary device is not remote",
                "the name of a function registered in the binary",
                "RecvTensor expects a different device incarnation: 1 vs. 2.",
                "keepalive watchdog timeout",
            )
        ),
        TypeError("Binding inputs to tf.function failed"),
    ],
)
def test_a_preempted_worker_may_be_why(error):
    assert failures.is_of_network(error)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.InvalidArgumentError(None, None, "not positive"),
        tf.errors.NotFoundError(None, None, "no such file"),
        TypeError("mine"),
        ValueError("socket"),
    ],
)
def test_what_is_the_functions_own_error(error):
    assert not failures.is_of_network(error)
