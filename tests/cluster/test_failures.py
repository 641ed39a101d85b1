import pytest

from tfps import errors


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
