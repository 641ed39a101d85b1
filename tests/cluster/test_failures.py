import pytest

from tfps import errors
from tfps.cluster import failures
from tfps.coordinator import faults


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
    assert faults.may_be_of_runtime(gone)
    own = RuntimeError("the model says that this cannot be")
    assert not failures.is_of_network(own)
    assert not faults.may_be_of_runtime(own)
