"""What `benchmarks.recovery` reads out of a turn's events, and how it finds processes."""

import os
import subprocess
import sys

import pytest

from benchmarks.failures import tasks, turns


def turn(tmp_path, case, events, said=()):
    made = turns.Turn.__new__(turns.Turn)
    made._case, made._events, made._said = case, tmp_path / "events", list(said)
    made._events.write_text("".join(f"{at} {what}\n" for at, what in events))
    return made


STEPS = [(t / 10, f"steps {t}") for t in range(1, 100)]  # a step each 0.1 s
ENDS = [(20.0, "scheduled 200"), (20.1, "updates 201")]


def test_a_lost_worker(tmp_path):
    (case,) = [c for c in turns.CASES if c.name == "worker killed"]
    events = sorted([*STEPS, (5.25, "lost worker 1"), (8.05, "back worker 1")]) + ENDS
    found = turn(tmp_path, case, events)._found(5.0)
    assert found == pytest.approx((0.25, 0.1, 3.05, 1))


def test_a_lost_ps(tmp_path):
    (case,) = [c for c in turns.CASES if c.name == "ps killed"]
    events = [e for e in STEPS if not 5.0 < e[0] < 8.0] + ENDS
    said = [(5.5, "tfps: ps 1 is gone; waiting up to 300 s for it to return")]
    said += [(7.9, "tfps: training goes on from the snapshot of 00:00:00")]
    made = turn(tmp_path, case, events, said)
    assert made._found(5.0) == pytest.approx((0.5, 3.0, 3.0, 1))
    assert "| ps killed | 0.50 s | 3.00 s | 3.00 s | +1 |" in turns.table(
        {"ps killed": [made._found(5.0)]}
    )


@pytest.mark.processes
@pytest.mark.parametrize(
    ("variables", "task"),
    [({"TF_CONFIG": '{"task": {"type": "ps", "index": 3}}'}, "ps 3"), ({"RANK": "1"}, "worker 1")],
)
def test_a_task_is_found_among_the_descendants_of_its_job(variables, task):
    environ = {k: v for k, v in os.environ.items() if k not in ("TF_CONFIG", "RANK")} | variables
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    # The job's own process has no such variable; the shell that passes it on is no Python.
    shell = ["sh", "-c", f'{sys.executable} -c "input()"; true']
    for command in ([sys.executable, "-c", program], shell):
        job = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE)
        try:
            pid = tasks.process_of(job.pid, task)
            assert pid not in (job.pid, os.getpid())
        finally:
            job.communicate()
