"""A long job whose tasks die again and again: nothing is lost, little time is, nothing grows.

TFPS_SOAK_SECONDS shortens or lengthens each of the two jobs; failures come as often.
"""

import os
import pathlib
import random
import re
import signal
import sys
import time

import pytest

from benchmarks.failures import tasks
from tests.launch import counting_program, rigs
from tfps.ledger import check

_ASKED = os.environ.get("TFPS_SOAK_SECONDS")

pytestmark = [pytest.mark.processes, pytest.mark.soak, pytest.mark.timeout(3 * 3600)]

# Of ten failures.
MIXED = ["worker"] * 7 + ["ps"] * 2 + ["chief"]

# How much a process may have grown since a third of the time. Every change of the cluster's tasks
# leaves four threads of TensorFlow's behind in the chief.
MORE_BYTES, MORE_DESCRIPTORS, MORE_THREADS, THREADS_A_CHANGE = 150 << 20, 40, 40, 4


def job(folder):
    """A job that trains, with snapshots and a ledger, until the file `enough` is there."""
    folder.mkdir()
    return rigs.Run(
        rigs.Local().command(
            *("--workers=3", "--ps=2", "--settle=20", "--worker_restarts=100000"),
            *("--ps_restarts=100000", "--chief_restarts=100000"),
            program=[
                *("python", counting_program.__file__, f"--snapshots={folder}/snapshots"),
                *("--snapshot_every=5", "--startup_timeout=180", "--task_timeout=180"),
                f"--ledger={folder}/ledger",
            ],
        ),
        folder,
        {},
    )


def ended(run):
    """How many different epochs have ended."""
    found = (re.match(r"\[chief 0\] epoch (\d+) has ended", line) for line in list(run.out))
    return len({m[1] for m in found if m})


def rate_without_failures(folder, seconds):
    run = job(folder)
    try:
        run.saw(r"epoch 1 has ended", timeout=180)
        begun, first = time.monotonic(), ended(run)
        time.sleep(seconds)
        rate = (ended(run) - first) / (time.monotonic() - begun)
        (folder / "enough").touch()
        assert run.wait(120) == 0
        return rate
    finally:
        run.end()


class Size:
    """What a process has: bytes of memory, threads and descriptors."""

    def __init__(self, pid):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        self.pid = pid
        self.bytes = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10
        self.threads = int(re.search(r"Threads:\s+(\d+)", status)[1])
        self.descriptors = len(os.listdir(f"/proc/{pid}/fd"))

    def __repr__(self):
        return f"{self.bytes >> 20} MiB, {self.threads} threads, {self.descriptors} descriptors"


def sizes(run):
    found = {}
    for name in ("chief 0", "ps 0", "ps 1", "worker 0", "worker 1", "worker 2"):
        try:
            found[name] = Size(tasks.process_of(run.process.pid, name))
        except (OSError, TypeError, TimeoutError):
            continue  # It is being started.
    return found


@pytest.mark.parametrize(
    ("every", "victims", "seconds"),
    [
        pytest.param(60.0, MIXED, 3600.0, id="a failure a minute"),
        pytest.param(15.0, ["worker"], 1800.0, id="a worker each 15 s"),
    ],
)
def test_a_long_job_among_failures(tmp_path, every, victims, seconds):
    if _ASKED:
        seconds = float(_ASKED)
    usual = rate_without_failures(tmp_path / "calm", min(120.0, seconds / 4))
    rng = random.Random(7)
    run = job(tmp_path / "storm")
    try:
        run.saw(r"epoch 1 has ended", timeout=180)
        begun, first, failures, early = time.monotonic(), ended(run), [], {}
        while (now := time.monotonic() - begun) < seconds:
            if now > seconds / 3 and not early:
                early, before = sizes(run), len(failures)
            role = rng.choice(victims)
            name = f"{role} {rng.randrange({'worker': 3, 'ps': 2, 'chief': 1}[role])}"
            try:
                tasks.send(run.process.pid, name, signal.SIGKILL)
            except TimeoutError:
                continue  # It waits to be started.
            failures.append(name)
            time.sleep(every)
            assert run.process.poll() is None, "\n".join([*run.out[-80:], *run.err[-30:]])
        rate = (ended(run) - first) / (time.monotonic() - begun)
        late, changes = sizes(run), len(failures) - before
        (tmp_path / "storm" / "enough").touch()
        assert run.wait(300) == 0, "\n".join([*run.out[-80:], *run.err[-30:]])
    finally:
        run.end()
    print(
        f"{len(failures)} failures; goodput {rate / usual:.1%}; {early} -> {late}", file=sys.stderr
    )
    (line,) = [line for line in run.out if "each record" in line]
    least, most, epochs, updates = map(int, re.findall(r"\d+", line.partition("each")[2]))
    assert least == most == epochs, line
    assert updates == epochs * counting_program.RECORDS // 4
    verdict = check(tmp_path / "storm" / "ledger")
    assert verdict.code == 0, verdict.lines
    for name in early.keys() & late.keys():
        a, b = early[name], late[name]
        if a.pid == b.pid:
            said = f"{name}: {a} -> {b}"
            assert b.bytes < a.bytes + MORE_BYTES, said
            assert b.descriptors < a.descriptors + MORE_DESCRIPTORS, said
            assert b.threads < a.threads + MORE_THREADS + THREADS_A_CHANGE * changes, said
    assert rate / usual > 0.8
