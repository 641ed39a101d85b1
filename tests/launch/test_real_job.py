"""A reference model as a job: all of its tasks are processes that the launcher starts."""

import os
import pathlib
import re
import signal
import time

import pytest

from tests.launch import rigs

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture
def gpt(tmp_path):
    """`gpt(*flags, epochs)`: a launcher that trains a tiny model."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    runs = []

    def start(*flags, epochs=1):
        program = [
            *("python", "-m", "models.gpt", f"--data={tmp_path}/text.txt"),
            *(f"--save={tmp_path}/m.keras", f"--log_dir={tmp_path}/board"),
            *("--layers=1", "--width=16", "--heads=2", "--context=16", "--batch_size=4"),
            *(f"--epochs={epochs}", "--steps_per_epoch=8", "--steps_per_execution=2"),
            *("--validation_steps=2", "--generate_tokens=4", "--startup_timeout=120"),
        ]
        command = rigs.Local().command(
            *flags, "--settle=20", f"--log_dir={tmp_path}/logs", program=program
        )
        runs.append(rigs.Run(command, tmp_path, {}))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


def ancestors(pid: str) -> list[str]:
    """The ids of a process's parent, its parent, and so on."""
    found = []
    while pid != "0":
        # The name, in brackets, may have blanks.
        pid = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        found.append(pid)
    return found


def process_of(run: rigs.Run, task: str) -> int:
    """The id of a task's process, by the TF_CONFIG that it was given."""
    role, index = task.split()
    told = f'"task": {{"type": "{role}", "index": {index}}}'.encode()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (
                told in (path / "environ").read_bytes()
                and b"models.gpt" in (path / "cmdline").read_bytes()
                and str(run.process.pid) in ancestors(path.name)
            ):
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"no process of {task}")


def test_a_job_whose_ps_is_killed_begins_again_and_trains_a_model(gpt, tmp_path):
    # Long enough to be killed, and when it begins again, short enough to end.
    run = gpt("--workers=1", "--ps=1", "--job_restarts=1", epochs=30)
    run.saw(r"\[chief 0\] .*validation: perplexity", timeout=120)
    os.kill(process_of(run, "ps 0"), signal.SIGKILL)
    run.saw(r"\[chief 0\] error: .*ps 0 .*(is gone|no longer answers)", timeout=60)
    assert run.wait(240) == 0, (run.out, run.err)
    assert "the job begins again" in run.err[-1]  # Then there is nothing to say.
    assert any(re.match(r"\[chief 0\] validation: .* bits per byte", line) for line in run.out)
    for server in ("worker 0", "ps 0"):
        assert f"[{server}] {server}: the job is done" in run.out
    assert (tmp_path / "m.keras").exists()


# The test above sees the chief's exit code, `test_laws.py` what the launcher says of the failure.
@pytest.mark.soak
def test_a_killed_ps_ends_the_job(gpt):
    run = gpt("--workers=1", "--ps=1", epochs=100_000)
    run.saw(r"\[chief 0\] .*validation: perplexity", timeout=120)
    os.kill(process_of(run, "ps 0"), signal.SIGKILL)
    killed = time.monotonic()
    line = run.saw(r"\[chief 0\] error: .*ps 0 .*(is gone|no longer answers)", timeout=60)
    assert run.wait(60) == 75
    assert time.monotonic() - killed < 60
    (said,) = [line for line in run.err if "it failed first" in line]
    assert "ps 0 on localhost" in said
    assert "was killed by SIGKILL" in said
    assert line in run.out


def test_sigterm_ends_every_task_in_order(gpt):
    run = gpt("--workers=1", "--ps=1", "--grace=30", epochs=1000)
    run.saw(r"\[chief 0\] .*validation: perplexity", timeout=120)
    told = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143, (run.out, run.err)
    assert time.monotonic() - told < 30  # Nobody had to be killed.
    assert "[chief 0] error: told to end by SIGTERM" in run.out
    assert not any("Traceback" in line for line in run.out)
