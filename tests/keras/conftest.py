"""What the tests of Keras's own semantics share."""

import pytest


@pytest.fixture
def connect(connect):
    """Like the fixture of all tests, with one ps unless a test asks for more.

    Over how many servers a model is spread is no matter of these tests, and each ps has a loop that
    is traced for each test.
    """

    def get(workers=1, ps=1, *args, **kwargs):
        return connect(workers, ps, *args, **kwargs)

    return get
