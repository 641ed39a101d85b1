"""What server processes of this machine write goes on to this process's standard error."""

import io
import os
import sys
import time

import pytest

from tfps.cluster import local

pytestmark = pytest.mark.processes

# More than a pipe holds, after a byte that is not UTF-8.
WRITES = r"""
import os
os.write(2, b"\xff\nafter it\n")
left = b"x" * 200_000 + b"\nthe end\n"
while left:
    left = left[os.write(2, left):]
"""


def run():
    """Waits for a process that writes."""
    process = local._started([sys.executable, "-S", "-c", WRITES], dict(os.environ), "[ps 0] ")
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def written(stream, text):
    """Waits for a text, which a thread writes."""
    for _ in range(1000):
        if text in stream.getvalue():
            return stream.getvalue()
        time.sleep(0.01)
    raise AssertionError(stream.getvalue()[-200:])


def test_what_is_no_utf8_is_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    run()
    said = written(stream, "the end")
    assert said.startswith("[ps 0] \ufffd\n[ps 0] after it\n[ps 0] xxx")


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_servers_go_on_where_nobody_can_be_told(monkeypatch, error):
    class Closed(io.StringIO):
        def write(self, text):
            raise error("nobody reads")

    monkeypatch.setattr(sys, "stderr", Closed())
    run()
