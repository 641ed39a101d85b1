"""Real chiefs that are killed while they train and save, and started again."""

import os
import pathlib
import random
import signal
import time

import pytest

from tests import warm
from tests.training import snapshot_program as program

ROOT = pathlib.Path(__file__).parent.parent.parent
EXPECTED = (
    f"{-float(program.EPOCHS * 2 * (2**10 - 1))} {list(range(program.EPOCHS))} "
    f"{program.EPOCHS * program.BATCHES}"
)


class Job:
    """A program that is started again and again in one folder."""

    def __init__(self, tmp_path, every, ballast, program=program):
        self.result, self.folder = tmp_path / "result", tmp_path / "snapshots"
        self._arguments = [str(program.__file__), *map(str, (self.folder, self.result)), str(every)]
        self._arguments.append(str(ballast))
        self._log, self._starts = tmp_path, 0

    def start(self):
        self._starts += 1
        self.log = self._log / f"log-{self._starts}"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return warm.start(self._arguments, ROOT, env, self.log)

    def said(self):
        return self.log.read_text()

    def until(self, wanted, process, limit=60):
        deadline = time.monotonic() + limit
        while wanted not in self.said() and "had ended before" not in self.said():
            assert process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def complete(self):
        return len(list(self.folder.glob("snapshot-*.json")))


def ended(process, limit=60):
    try:
        return process.wait(limit)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.processes
def test_sigterm_takes_a_last_snapshot(tmp_path):
    job = Job(tmp_path, every=1000, ballast=0)
    process = job.start()
    try:
        job.until("trains", process)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
    finally:
        code = ended(process)
    assert code == 143, job.said()
    assert "told to end by SIGTERM; the newest snapshot is snapshot-000001-000002" in job.said()
    assert job.complete() == 2
    assert ended(job.start()) == 0, job.said()
    assert "goes on from snapshot-000001-000002" in job.said()
    assert job.result.read_text() == EXPECTED
    # It has ended in order, so the same command begins anew.
    job.result.unlink()
    assert ended(job.start()) == 0, job.said()
    assert "goes on" not in job.said()
    assert job.result.read_text() == EXPECTED


def torn(folder):
    """How many snapshots have files, but no manifest."""
    names = {p.name.split(".")[0] for p in folder.glob("snapshot-*")}
    return len(names - {p.stem for p in folder.glob("snapshot-*.json")})


@pytest.mark.processes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_any_moment_of_writing(tmp_path, kills):
    """Snapshots of 20 MB follow one another, so most of the kills come while one is written.

    A job that comes to its end between two kills is followed by another one.
    """
    dice, done, cut_short, jobs = random.Random(kills), 0, 0, 0
    while done < kills:
        jobs += 1
        (folder := tmp_path / str(jobs)).mkdir()
        job = Job(folder, every=0.01, ballast=20)
        code = None
        while code is None:
            had = job.complete()
            process = job.start()
            try:
                job.until("trains", process)
                if done < kills:
                    time.sleep(dice.uniform(0.0, 1.0))
                    if process.poll() is None:
                        process.kill()
            finally:
                code = ended(process)
            if code == -signal.SIGKILL:
                done, cut_short, code = done + 1, cut_short + torn(job.folder), None
        assert code == 0, job.said()
        assert bool(had) == ("goes on from" in job.said() or "had ended before" in job.said())
        assert job.result.read_text() == EXPECTED
    assert cut_short >= kills // 5
