"""A tfps job whose worker, ps and chief die, one after the other, under launchers."""

import contextlib
import os
import pathlib
import re
import signal
import time

import keras
import numpy as np
import pytest

from benchmarks.failures import tasks
from tests.launch import counting_program, rigs

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

RIGS = {
    "local": lambda folder: rigs.Local(),
    "ssh": rigs.Ssh,
}


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.soak)])
def job(request, tmp_path):
    """`job(*flags)`: a launcher that runs the program with snapshots and an evaluator."""
    if request.param == "ssh" and (why := rigs.why_no_ssh()):
        pytest.skip(f"no hosts: {why}")
    (tmp_path / "rig").mkdir()
    rig = RIGS[request.param](tmp_path / "rig")
    runs = []

    def start(*flags):
        command = rig.command(
            *("--workers=2", "--ps=1", "--settle=20", "--env=PYTHONPATH", *flags),
            program=[
                *("python", counting_program.__file__, f"--snapshots={tmp_path}/snapshots"),
                *("--snapshot_every=1", "--startup_timeout=120", "--task_timeout=120"),
            ],
        )
        runs.append(rigs.Run(command, tmp_path, {}))
        return runs[-1]

    yield start
    for run in runs:
        run.end()
    if request.param == "ssh":
        rig.close()


def process_of(folder: pathlib.Path, task: str) -> int:
    """The id of a task's process, which need not be a descendant of the launcher's."""
    role, index = task.split()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            is_ours = f"--snapshots={folder}/snapshots".encode() in words
            if is_ours and tasks.task_of(int(path.name)) == (role, int(index)):
                return int(path.name)
    raise AssertionError(f"no process of {task}")


def kill(run, folder, task):
    known = len(run.out)
    os.kill(process_of(folder, task), signal.SIGKILL)
    return known


def saw_after(run, known, pattern):
    """Waits for a line of a task after the first so many lines."""
    deadline = time.monotonic() + 120
    while not any(re.search(pattern, line) for line in run.out[known:]):
        assert time.monotonic() < deadline, (pattern, run.out, run.err)
        assert run.process.poll() is None, "\n".join([*run.out[-150:], *run.err[-20:]])
        time.sleep(0.1)


def test_every_step_is_done_though_all_tasks_die(job, tmp_path):
    run = job("--evaluator")
    run.saw(r"\[chief 0\] epoch 1 has ended", timeout=120)
    for task, pattern in (
        ("worker 1", r"\[worker 1\] .*serves"),
        ("ps 0", r"\[chief 0\] .*training goes on from the snapshot"),
        ("chief 0", r"\[chief 0\] snapshots: goes on from snapshot-0"),
        ("evaluator 0", r"\[evaluator 0\] evaluator: snapshot-000002"),
    ):
        known = kill(run, tmp_path, task)
        saw_after(run, known, pattern)
        saw_after(run, len(run.out), r"\[chief 0\] epoch \d+ has ended")
    (tmp_path / "enough").touch()
    assert run.wait(120) == 0, (run.out, run.err)
    (line,) = [line for line in run.out if "each record" in line]
    least, most, epochs, updates = map(int, re.findall(r"\d+", line.partition("each")[2]))
    assert least == most == epochs, line
    assert updates == epochs * counting_program.RECORDS // 4
    # The evaluator has seen the end, and its best is what it says.
    assert any("[evaluator 0] evaluator: the job has ended" in line for line in run.out)
    losses = np.load(tmp_path / "evaluated.npy")
    assert len(losses) >= 2 and losses[-1] < losses[0]
    best = keras.models.load_model(tmp_path / "snapshots" / "evaluator" / "best.keras")
    ids = np.arange(counting_program.RECORDS, dtype=np.float32)[:, None]
    loss = best.evaluate(ids, np.ones_like(ids), verbose=0)[0]
    assert loss == pytest.approx(losses.min(), rel=1e-6)


@pytest.mark.soak
def test_a_job_that_is_told_to_end_goes_on_where_it_was(job, tmp_path):
    """As with Slurm's notice before the end of the time limit, and a job that is queued again."""
    run = job("--grace=30")
    run.saw(r"\[chief 0\] epoch 3 has ended", timeout=120)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143, (run.out, run.err)
    (line,) = [line for line in run.out if "told to end by SIGTERM; the newest snapshot is" in line]
    last = line.split()[-1]
    epoch = [line for line in run.out if "has ended" in line][-1].split()[3]
    run = job()
    run.saw(rf"\[chief 0\] snapshots: goes on from {last} ", timeout=120)
    run.saw(rf"\[chief 0\] epoch {int(epoch) + 1} has ended", timeout=60)
    (tmp_path / "enough").touch()
    assert run.wait(120) == 0, (run.out, run.err)
    assert f"[chief 0] epoch {epoch} has ended" not in run.out
    (line,) = [line for line in run.out if "each record" in line]
    least, most, epochs, _ = map(int, re.findall(r"\d+", line.partition("each")[2]))
    assert least == most == epochs, line
