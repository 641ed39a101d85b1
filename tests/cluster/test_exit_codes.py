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


def test_sigterm_unwinds_and_the_handler_goes():
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
import atexit, sys, tfps
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
tfps.serve(cluster)
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
    expected = {"lost": 75, "own": 1, "bad": 3, "server": 143}
    processes = {
        kind: start(kind, {"bad": "{}", "server": configs["ps"]}.get(kind, configs["chief"]))
        for kind in expected
    }
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
    assert "told to end by SIGTERM" in said["server"][1]
    assert "Traceback" not in said["server"][1]


def test_the_table_is_public():
    assert tfps.exit_codes is exit_codes
