"""What the launcher's user sees, and what is kept of it."""

import io
import os
import threading
import time

import pytest

from launch import exit_codes, output
from launch.launcher import Line


def shown(colour=(False, False), **arguments):
    """An output, and the streams that it writes to."""
    out, err = io.BytesIO(), io.BytesIO()
    return output.Output(out=out, err=err, colour=colour, **arguments), out, err


def test_lines_are_marked_and_the_last_ones_kept():
    made, out, err = shown()
    made.begin("worker 3", "h 1.2.3.4:5")
    for i in range(30):
        made.line(Line("worker 3", f"line {i}"))
    made.say("it failed")
    made.show_last("worker 3")
    made.close()
    lines = [f"[worker 3] line {i}" for i in range(30)]
    assert out.getvalue().decode().splitlines() == lines
    assert err.getvalue().decode().splitlines() == ["[launch] it failed", *lines[-output.LAST :]]


def test_marks_have_a_colour_for_each_task():
    made, out, _ = shown(colour=(True, True))
    for task in ("chief 0", "worker 0", "chief 0"):
        made.line(Line(task, "x"))
    made.close()
    first, second, third = out.getvalue().decode().splitlines()
    assert first == third
    assert first.startswith("\x1b[")
    assert first.split("[chief")[0] != second.split("[worker")[0]


def test_a_log_has_what_the_task_wrote(tmp_path):
    made, out, _ = shown(log_dir=str(tmp_path / "a" / "logs"))
    made.begin("ps 0", "h 1.2.3.4:5")
    for line in (Line("ps 0", "be", ""), Line("ps 0", "gun"), Line("ps 0", "50%", "\r")):
        made.line(line)
    made.line(Line("ps 0", "no end", ""))
    made.line(Line("ps 0", "", "\n"))
    made.close()
    head, *lines = (tmp_path / "a" / "logs" / "ps-0.log").read_text().splitlines()
    assert head.endswith(" ps 0 at h 1.2.3.4:5 ===")
    assert lines == ["begun", "50%", "no end"]
    assert out.getvalue().decode().splitlines() == [
        f"[ps 0] {text}" for text in ("be", "gun", "50%", "no end")
    ]


def test_colours_are_for_terminals(monkeypatch):
    leader, follower = os.openpty()
    with open(leader, "rb", buffering=0), open(follower, "wb", buffering=0) as terminal:
        assert output.wants_colour(terminal, {"TERM": "xterm"})
        assert not output.wants_colour(terminal, {"TERM": "xterm", "NO_COLOR": "1"})
        assert not output.wants_colour(terminal, {"TERM": "dumb"})
    assert not output.wants_colour(io.BytesIO(), {})


class Stuck(io.BytesIO):
    """A terminal that takes nothing until it is told to."""

    def __init__(self):
        super().__init__()
        self.goes_on = threading.Event()

    def write(self, data):
        self.goes_on.wait(30)
        return super().write(data)


def test_a_terminal_that_is_stuck_holds_up_nobody(monkeypatch):
    monkeypatch.setattr(output, "STUCK", 0.2)
    monkeypatch.setattr(output, "WAITING", 50)
    out, err = Stuck(), io.BytesIO()
    made = output.Output(out=out, err=err, colour=(False, False))
    begun = time.monotonic()
    for i in range(200):
        made.line(Line("chief 0", f"line {i}"))
    assert time.monotonic() - begun < 5
    out.goes_on.set()
    while made._console._waiting.qsize():
        time.sleep(0.01)
    made.line(Line("chief 0", "later"))
    made.close()
    lines = out.getvalue().decode().splitlines()
    assert lines[0] == "[chief 0] line 0"
    assert lines[-1] == "[chief 0] later"
    assert f"{200 - (len(lines) - 1)} lines were dropped" in err.getvalue().decode()


def test_a_reader_that_has_ended_ends_nothing():
    class Gone(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError

    err = io.BytesIO()
    made = output.Output(out=Gone(), err=err, colour=(False, False))
    made.line(Line("chief 0", "x"))
    made.say("still here")
    made.close()
    assert err.getvalue() == b"[launch] still here\n"


@pytest.mark.parametrize(
    ("status", "code", "retried", "words"),
    [
        (-9, 137, True, "was killed by SIGKILL (exit code 137)"),
        (-15, 143, True, "was killed by SIGTERM (exit code 143)"),
        (137, 137, True, "ended with exit code 137"),  # A shell's word for a killed command.
        (75, 75, True, "ended with exit code 75: it lost a peer"),
        (143, 143, True, "ended with exit code 143: it was told to end by SIGTERM"),
        (1, 1, False, "ended with exit code 1"),
        (2, 2, False, "ended with exit code 2: its flags are wrong"),
        (3, 3, False, "ended with exit code 3: its cluster specification is wrong"),
        (127, 127, False, "ended with exit code 127: its command was not found"),
        (255, 255, False, "ended with exit code 255"),
    ],
)
def test_exit_codes(status, code, retried, words):
    assert exit_codes.of_status(status) == code
    assert exit_codes.may_be_retried(status) == retried
    assert exit_codes.described(status) == words
