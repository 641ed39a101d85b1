"""`launch kubernetes` as a command."""

import subprocess
import sys

import pytest
import yaml

from tests.launch.test_kubernetes_job import ended, kube  # noqa: F401  A fixture.

PROGRAM = ["--", "python", "-m", "models.gpt", "--epochs=1"]


def launch(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "launch", "kubernetes", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )


@pytest.mark.processes
def test_manifests_are_printed():
    done = launch(
        *("--name=gpt", "--workers=4", "--ps=2", "--image=gpt:1", "--gpus_per_worker=1"),
        *("--node_selector=worker:pool=gpu", "--secret=keys", "--no_restart", *PROGRAM),
    )
    assert done.returncode == 0, done.stderr
    jobs = [m for m in yaml.safe_load_all(done.stdout) if m["kind"] == "Job"]
    assert {m["metadata"]["name"]: m["spec"]["completions"] for m in jobs} == {
        "gpt-worker": 4,
        "gpt-ps": 2,
        "gpt-chief": 1,
    }
    spec = jobs[1]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert spec["containers"][0]["command"] == PROGRAM[1:]
    assert all(m["spec"]["backoffLimitPerIndex"] == 0 for m in jobs)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--name=gpt"], "--image is not set; name an image"),
        (["--name=GPT", "--image=x"], "--name=GPT is no DNS label"),
        (["--image=x", "--node_selector=pool=gpu"], "is not ROLE:LABEL=VALUE"),
    ],
)
def test_flags_that_are_wrong(flags, says):
    done = launch(*flags, *PROGRAM)
    assert done.returncode == 2
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.processes
def test_a_job_is_created_followed_and_ended(kube):  # noqa: F811
    """The stand-in's pods are there before the job, so that the job has already failed."""
    kube.pod("worker", 0, ended(1), "error: no data\n")
    flags = [f"--kubectl={kube.program}", "--name=gpt", "--image=x", "--apply"]
    command = [sys.executable, "-m", "launch", "kubernetes", *flags, *PROGRAM]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert "end it with: python -m launch kubernetes --name=gpt stop" in line
        kube.finish("Job", "gpt-worker", "Failed")
        rest = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert rest.splitlines()[-1] == "[worker 0] error: no data"
    assert kube.objects == []


@pytest.mark.processes
def test_stop(kube):  # noqa: F811
    done = launch(f"--kubectl={kube.program}", "--name=gpt", "stop")
    assert done.returncode == 0, done.stderr
    assert kube.calls[-1][0] == "delete"
