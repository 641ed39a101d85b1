"""`launch slurm` under a real Slurm with four nodes, which the tests start and end."""

import os
import pathlib
import re
import signal
import sys
import time

import pytest

import launch
from launch import exit_codes
from tests.launch import peers, slurm_cluster
from tests.launch.processes import with_word
from tests.launch.slurm_cluster import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

ROOT = pathlib.Path(launch.__file__).parent.parent
LAUNCH = [sys.executable, "-m", "launch", "slurm"]


class Submitted:
    """A job of peers."""

    def __init__(self, cluster, folder, *deeds, flags=(), sbatch=()):
        self.cluster, self.folder = cluster, folder
        output = [f"--sbatch=--output={folder}/out", *(f"--sbatch={o}" for o in sbatch)]
        program = ["python", peers.__file__, str(folder), *deeds]
        said = cluster.run(*LAUNCH, *output, *flags, "--", *program, cwd=ROOT)
        self.id = re.search(r"job (\d+) is submitted", said)[1]

    @property
    def output(self):
        path = self.folder / "out"
        return path.read_text() if path.exists() else ""

    def note(self, name):
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    def ready(self, *names):
        wait_until(lambda: all(self.note(f"{n}.ready") for n in names), 60, lambda: self.output)

    def wait(self, timeout=100):
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(
            lambda: self.cluster.states(self.id).split()[0] in over, timeout, lambda: self.output
        )
        return self.cluster.exit_code(self.id)

    def launcher(self):
        """The process id of the launcher, which runs instead of the batch script's shell."""
        (pid,) = [p for p in with_word(str(self.folder)) if b"launch" in words(p)[2:3]]
        return pid

    def gone(self, within):
        wait_until(lambda: not with_word(str(self.folder)), within)


def words(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


HETEROGENEOUS = (
    *("--workers=4", "--ps=2", "--gpus_per_worker=1"),
    *("--ps_partition=cpu", "--partition=gpu", "--time=5"),
)


def test_servers_on_nodes_without_gpus_and_workers_on_those_with(cluster, tmp_path):
    job = Submitted(cluster, tmp_path, flags=HETEROGENEOUS)
    assert job.wait() == 0, job.output
    output = job.output.replace("node n2", "node n1")  # Slurm chooses one of both.
    where = dict(re.findall(r"\[(\w+ \d)\] (GPUs .*; node n\d)", output))
    assert where == {
        "chief 0": "GPUs ; node n1",
        "ps 0": "GPUs ; node n1",
        "ps 1": "GPUs ; node n1",
        "worker 0": "GPUs 0; node n3",
        "worker 1": "GPUs 1; node n3",
        "worker 2": "GPUs 0; node n4",
        "worker 3": "GPUs 1; node n4",
    }
    assert job.output.count("reached") == 6


ASKED = [
    "--gpus-per-task=1",
    "--gres=gpu:2",
    "--gpus-per-node=2",
    "--gpus=4",
]


@pytest.mark.parametrize("asked", ASKED)
def test_all_gpus_of_an_allocation_are_found(cluster, tmp_path, asked):
    """`--gpus-per-task` shows one device to each task of a step, and the agent is one task."""
    script = tmp_path / "script"
    flags = ["--workers=2", "--ps=1", "--gpus_per_worker=2", "--dry_run"]
    command = " ".join([*LAUNCH, *flags, "--", "python", peers.__file__, str(tmp_path)])
    script.write_text(f"#!/bin/sh\n{command}\n")
    size = ["--nodes=2", "--ntasks-per-node=2", "--partition=gpu"]
    cluster.run("sbatch", "--wait", *size, asked, f"--output={tmp_path}/out", str(script), cwd=ROOT)
    rows = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    table = {f"{r[0]} {r[1]}": (r[2], r[4]) for r in rows if r[0] in ("worker", "ps", "chief")}
    assert table == {
        "ps 0": ("n3", "none"),
        "worker 0": ("n3", "0,1"),
        "worker 1": ("n4", "0,1"),
        "chief 0": ("n3", "none"),
    }


def test_tasks_go_where_slurm_has_counted_them(cluster, tmp_path):
    options = ["--nodes=2", "--ntasks-per-node=4"]
    job = Submitted(cluster, tmp_path, flags=["--workers=6", "--ps=1"], sbatch=options)
    assert job.wait() == 0, job.output
    nodes = dict(re.findall(r"\[(worker \d)\] GPUs .*; node (n\d)", job.output))
    assert sorted(nodes.values()) == ["n1"] * 3 + ["n2"] * 3


@pytest.mark.parametrize("code", [exit_codes.FAILED, exit_codes.CLUSTER])
def test_the_users_own_error_is_the_jobs(cluster, tmp_path, code):
    job = Submitted(cluster, tmp_path, "worker", "1", str(code))
    assert job.wait() == code
    assert len(job.note("worker-1")) == 1
    assert re.search(r"worker 1 on n\d \(127.0.0.1:\d+\) ended with exit code", job.output)


def test_a_task_that_is_killed_is_started_again(cluster, tmp_path):
    job = Submitted(cluster, tmp_path, "worker", "0", "once-9")
    assert job.wait() == 0, job.output
    assert len(job.note("worker-0")) == 2 and len(job.note("worker-1")) == 1


def test_a_node_whose_step_ends_gets_another(cluster, tmp_path):
    """`srun` is killed: Slurm ends the agent with all of its tasks."""
    spread = ["--nodes=2", "--ntasks-per-node=2"]
    job = Submitted(cluster, tmp_path, "chief", "0", "hold", sbatch=spread, flags=["--no_restart"])
    job.ready("chief-0")
    wait_until(lambda: job.note("worker-1"), 60)
    (worker,) = job.note("worker-1")
    launcher = job.launcher()
    steps = [p for p in children(launcher) if b"--nodelist=n2" in words(p)]
    os.kill(steps[0], signal.SIGKILL)
    assert job.wait() == exit_codes.LOST
    assert not slurm_cluster.alive(int(worker))
    assert "host n2 is lost" in job.output


def children(pid):
    return [
        int(c)
        for t in pathlib.Path(f"/proc/{pid}/task").iterdir()
        for c in (t / "children").read_text().split()
    ]


def test_cancelling_tells_every_task_and_leaves_none(cluster, tmp_path):
    deeds = ["chief", "0", "tell", "worker", "0", "tell", "worker", "1", "child"]
    job = Submitted(cluster, tmp_path, *deeds, sbatch=["--nodes=2", "--ntasks-per-node=2"])
    job.ready("chief-0", "worker-0", "worker-1")
    cluster.run("scancel", job.id)
    job.gone(within=10)
    assert job.note("chief-0.term") and job.note("worker-0.term")
    assert job.wait() is not None and cluster.states(job.id) == "CANCELLED"


def test_nothing_is_left_when_the_launcher_is_killed(cluster, tmp_path):
    deeds = ["chief", "0", "hold", "worker", "0", "child", "worker", "1", "deaf"]
    job = Submitted(cluster, tmp_path, *deeds, sbatch=["--nodes=2", "--ntasks-per-node=2"])
    job.ready("chief-0", "worker-0", "worker-1")
    os.kill(job.launcher(), signal.SIGKILL)
    job.gone(within=10)


def test_a_notice_is_passed_on_and_the_job_queued_again(cluster, tmp_path):
    deeds = ["chief", "0", "tell", "worker", "0", "tell"]
    job = Submitted(cluster, tmp_path, *deeds, flags=["--requeue"])
    job.ready("chief-0", "worker-0")
    cluster.run("scancel", "--batch", "--signal=TERM", job.id)
    wait_until(lambda: "queued again" in job.output, 60, lambda: job.output)
    assert job.note("chief-0.term") and job.note("worker-0.term")
    wait_until(lambda: cluster.states(job.id) in ("PENDING", "RUNNING"), 60)
    cluster.run("scancel", job.id)
    job.wait()
    assert cluster.states(job.id) == "CANCELLED"  # And is not queued again by that.


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_slurm_gives_notice_before_the_time_is_over(cluster, tmp_path):
    began = time.monotonic()
    flags = ["--time=1", "--signal=TERM@50", "--grace=5"]
    job = Submitted(cluster, tmp_path, "chief", "0", "tell", flags=flags)
    job.ready("chief-0")
    assert job.wait(timeout=180) == exit_codes.TERMINATED
    assert job.note("chief-0.term")
    print(f"after {time.monotonic() - began:.0f} s")


def test_what_slurm_refuses(cluster, tmp_path):
    with pytest.raises(AssertionError, match=r"error: sbatch: .*[Ii]nvalid partition"):
        Submitted(cluster, tmp_path, flags=["--partition=nowhere"])


def test_a_notice_that_comes_too_late(cluster, tmp_path):
    with pytest.raises(AssertionError, match="TERM@60 comes 60 s before the end, but --grace=90"):
        Submitted(cluster, tmp_path, flags=["--signal=TERM@60", "--grace=90"])


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_tfps_job(cluster, tmp_path):
    """Chief and servers on two nodes; the servers end by themselves."""
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    small = (
        "--layers=1 --width=16 --heads=2 --context=16 --batch_size=4 --epochs=1 "
        "--steps_per_epoch=8 --steps_per_execution=2 --validation_steps=2 --generate_tokens=4"
    )
    files = [f"--data={tmp_path}/text", f"--save={tmp_path}/m.keras", f"--log_dir={tmp_path}/logs"]
    output = [f"--sbatch=--output={tmp_path}/out", "--sbatch=--nodes=2"]
    flags = ["--workers=2", "--ps=1", *output]
    words = ["python", "-m", "models.gpt", *small.split(), *files]
    said = cluster.run(*LAUNCH, *flags, "--", *words, cwd=ROOT)
    job = re.search(r"job (\d+) is submitted", said)[1]
    read = (tmp_path / "out").read_text
    wait_until(lambda: cluster.states(job) in ("COMPLETED", "FAILED"), 240, lambda: read())
    assert cluster.states(job) == "COMPLETED", read()
    assert "[worker 1] worker 1: the job is done" in read()
