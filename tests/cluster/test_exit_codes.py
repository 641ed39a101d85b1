"""What processes end with: one table for binaries, programs of the user's own, and launchers."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

import tfps
from launch import exit_codes as launchers
from tfps import errors, exit_codes
from tfps.cluster import sockets

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_launchers_have_the_same_table():
    for name in ("DONE", "FAILED", "FLAGS", "CLUSTER", "LOST", "TERMINATED"):
        assert getattr(exit_codes, name) == getattr(launchers, name)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TaskLost("x"), 75),
        (errors.ChiefLost("x"), 75),
        (errors.StartupTimeout("x"), 75),
        (errors.Superseded("x"), 75),
        (errors.SnapshotDamaged("x"), 1),
        (errors.ClusterConfigError("x"), 3),
        (errors.PortInUse("x"), 3),
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 1),
        (errors.WorkerError(0, "a:1", "x"), 1),
        (errors.StepTimeout("x"), 1),
        (ValueError("x"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_codes_of_errors(error, code):
    assert exit_codes.of(error) == code
    assert launchers.may_be_retried(code) == (code == 75)


@pytest.fixture
def sigterm():
    """Gives SIGTERM its default back; once it has come, `on_sigterm` leaves it ignored."""
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_sigterm_unwinds_and_the_handler_goes(sigterm):
    left = []
    with pytest.raises(SystemExit) as caught, exit_codes.on_sigterm():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            left.append(True)
    assert caught.value.code == 143
    assert left
    with exit_codes.on_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with exit_codes.on_sigterm():
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Dropped:
    """Its end raises SIGTERM where Python drops every exception."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sigterm_whose_exception_is_dropped_is_not_forgotten(sigterm):
    gone = []
    with pytest.raises(SystemExit) as caught, exit_codes.on_sigterm():
        exit_codes.end_if_told()
        Dropped()
        gone.append("on")
        exit_codes.end_if_told()
        gone.append("too far")
    assert caught.value.code == 143
    assert gone == ["on"]
    exit_codes.end_if_told()  # It is over with the context.


def test_a_sigterm_that_becomes_another_error_ends_the_same_way(sigterm):
    lock = threading.Lock()
    with pytest.raises(SystemExit) as caught, exit_codes.on_sigterm():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            lock.release()  # A RuntimeError, as in an interrupted wait of a condition.
    assert caught.value.code == 143
    with pytest.raises(RuntimeError), exit_codes.on_sigterm():
        lock.release()


def test_a_handler_of_the_programs_own_stays():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
    try:
        with exit_codes.on_sigterm():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen


PROGRAM = """
import atexit, signal, sys, tfps
try:
    cluster = tfps.Cluster.from_env()
except tfps.Error:
    if sys.argv[1] != "caught":
        raise
atexit.register(print, "farewell")
if sys.argv[1] == "lost":
    raise tfps.TaskLost("worker 0 no longer answers")
if sys.argv[1] == "own":
    raise ValueError("mine")
class Dropped:  # Its end raises SIGTERM where Python drops every exception.
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
def report(line):
    print(line, file=sys.stderr, flush=True)
    if sys.argv[1] == "dropped" and "serves at" in line:
        Dropped()
tfps.serve(cluster, report=report)
"""


def start(kind, config):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind],
        env={**os.environ, "TF_CONFIG": config},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.processes
@pytest.mark.timeout(280)
def test_programs_that_catch_nothing():
    ports = sockets.free_ports(3)
    cluster = {
        job: [f"127.0.0.1:{port}"]
        for job, port in zip(("chief", "worker", "ps"), ports, strict=True)
    }
    configs = {
        job: json.dumps({"cluster": cluster, "task": {"type": job, "index": 0}}) for job in cluster
    }
    expected = {"lost": 75, "own": 1, "bad": 3, "server": 143, "dropped": 143}
    given = {"bad": "{}", "server": configs["ps"], "dropped": configs["worker"]}
    processes = {kind: start(kind, given.get(kind, configs["chief"])) for kind in expected}
    # Whatever happens, no process is left: nobody starts a chief for the server.
    guards = [threading.Timer(240, p.kill) for p in processes.values()]
    for guard in guards:
        guard.start()
    try:
        server = processes["server"]
        while "serves at" not in (line := server.stderr.readline()):
            assert line
        server.send_signal(signal.SIGTERM)
        said = {kind: p.communicate(timeout=240) for kind, p in processes.items()}
    finally:
        for guard in guards:
            guard.cancel()
        for p in processes.values():
            p.kill()
    assert {kind: p.returncode for kind, p in processes.items()} == expected, said
    assert "TaskLost: worker 0 no longer answers" in said["lost"][1]
    assert "farewell" in said["lost"][0]  # What the program registered still runs.
    for kind in ("server", "dropped"):
        assert "told to end by SIGTERM" in said[kind][1]
        assert "Traceback" not in said[kind][1]


def test_the_table_is_public():
    assert tfps.exit_codes is exit_codes
