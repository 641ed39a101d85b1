"""Seeded schedules of failures, on jobs as users start them; the ledger is checked after each."""

import itertools
import os
import random
import re
import signal
import sys
import time

import pytest

from benchmarks.failures import tasks
from tests.launch import counting_program, rigs
from tfps.ledger import check

pytestmark = [pytest.mark.processes, pytest.mark.soak, pytest.mark.timeout(600)]

FAULTS = "kill", "freeze", "terminate", "slow"
TASKS = "worker 1", "ps 0", "chief 0"

SINGLE = list(itertools.product(FAULTS, TASKS))
PAIRED = range(12)  # seeds


@pytest.fixture
def job(tmp_path):
    """A job that trains, with snapshots and a ledger, until the file `enough` is there."""
    run = rigs.Run(
        rigs.Local().command(
            *("--workers=2", "--ps=2", "--settle=20", "--worker_restarts=20", "--ps_restarts=20"),
            "--chief_restarts=20",
            program=[
                *("python", counting_program.__file__, f"--snapshots={tmp_path}/snapshots"),
                *("--snapshot_every=1", "--startup_timeout=180", "--task_timeout=180"),
                f"--ledger={tmp_path}/ledger",
            ],
        ),
        tmp_path,
        {},
    )
    yield run
    run.end()


def suffer(run, fault, task):
    """Lets a task suffer a failure, for as long as that lasts."""
    root = run.process.pid
    if fault in ("kill", "terminate"):
        tasks.send(root, task, signal.SIGKILL if fault == "kill" else signal.SIGTERM)
        return
    # A frozen task is lost after 10 to 15 s; a slow one runs for a tenth of the time.
    frozen, runs, times = (20.0, 0.0, 1) if fault == "freeze" else (0.45, 0.05, 20)
    pid = tasks.process_of(root, task)
    for _ in range(times):
        for signum, seconds in ((signal.SIGSTOP, frozen), (signal.SIGCONT, runs)):
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                return  # The launcher has started it again meanwhile.
            time.sleep(seconds)


def goes_on(run, seconds=240):
    """Waits for two epochs that end from now on."""
    known = len(run.out)
    deadline = time.monotonic() + seconds
    while sum("has ended" in line for line in run.out[known:]) < 2:
        assert time.monotonic() < deadline, "\n".join([*run.out[-60:], *run.err[-20:]])
        assert run.process.poll() is None, "\n".join([*run.out[-60:], *run.err[-20:]])
        time.sleep(0.1)


def require_exactly_once(run, folder):
    (folder / "enough").touch()
    assert run.wait(240) == 0, "\n".join([*run.out[-60:], *run.err[-20:]])
    (line,) = [line for line in run.out if "each record" in line]
    least, most, epochs, updates = map(int, re.findall(r"\d+", line.partition("each")[2]))
    assert least == most == epochs, line
    assert updates == epochs * counting_program.RECORDS // 4
    verdict = check(folder / "ledger")
    assert verdict.code == 0, verdict.lines
    print(*verdict.lines, sep="\n", file=sys.stderr)


@pytest.mark.parametrize(("fault", "task"), SINGLE)
def test_one_failure(job, tmp_path, fault, task):
    goes_on(job)
    suffer(job, fault, task)
    goes_on(job)
    require_exactly_once(job, tmp_path)


@pytest.mark.parametrize("seed", PAIRED)
def test_two_failures(job, tmp_path, seed):
    """The second comes while the first is being got over, or at once."""
    rng = random.Random(seed)
    (first, second) = rng.sample(SINGLE, 2)
    goes_on(job)
    suffer(job, *first)
    time.sleep(rng.choice([0.0, 0.3, 1.0, 3.0, 8.0]))
    suffer(job, *second)
    goes_on(job)
    require_exactly_once(job, tmp_path)
