"""What is special about this machine: GPUs, pinning, scripts, a terminal; and the command line."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch import rigs

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]


def test_gpus_are_dealt_out(launch, tmp_path):
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor i in 0 1 2 3; do echo $i; done\n")
    smi.chmod(0o755)
    program = """
        order = os.environ.get("CUDA_DEVICE_ORDER")
        print("sees", repr(os.environ["CUDA_VISIBLE_DEVICES"]), "in order", order)
        if role != "chief":
            serve_until_term()
    """
    environ = {"PATH": f"{smi.parent}:{os.environ['PATH']}"}
    run = launch(rigs.Local(), program, "--workers=2", "--ps=1", environ=environ)
    assert run.wait() == 0, run.err
    assert sorted(run.out) == [
        "[chief 0] sees '' in order None",
        "[ps 0] sees '' in order None",
        "[worker 0] sees '0,1' in order PCI_BUS_ID",
        "[worker 1] sees '2,3' in order PCI_BUS_ID",
    ]
    run = launch(rigs.Local(), program, "--workers=5", "--ps=1", environ=environ)
    assert run.wait() == 3
    assert "has 4 GPU(s) for 5 workers" in run.err[0]
    smi.write_text("#!/bin/sh\necho 'Unable to determine the device handle'; exit 15\n")
    run = launch(rigs.Local(), program, "--workers=2", "--ps=1", environ=environ)
    assert run.wait() == 3
    (line,) = run.err
    assert "host localhost: nvidia-smi ended with exit code 15: Unable to determine" in line
    flags = ("--workers=1", "--ps=1", "--gpus_per_worker=0")
    run = launch(rigs.Local(), program, *flags, environ=environ)
    assert run.wait() == 0, run.err


def test_tasks_are_pinned(launch):
    program = """
        print("runs on", sorted(os.sched_getaffinity(0)))
        if role != "worker" or index:
            serve_until_term()
    """
    cores = sorted(os.sched_getaffinity(0))
    run = launch(rigs.Local(), program, "--workers=1", "--ps=0", "--pin=cores")
    assert run.wait() == 0, run.err
    assert run.out == [f"[worker 0] runs on {cores}"]
    if len(cores) > 1:
        flags = ("--workers=1", "--ps=0", "--pin=cores", "--cores_per_worker=1")
        run = launch(rigs.Local(), program, *flags)
        assert run.wait() == 0, run.err
        assert run.out == [f"[worker 0] runs on {cores[:1]}"]


def test_a_scripts_command_has_its_grace(tmp_path):
    """A shell ends at once by SIGTERM; what it has started still saves."""
    (tmp_path / "save.py").write_text(
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(1)\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "job.sh").write_text(f"{sys.executable} save.py\necho never\n")
    command = rigs.Local().command("--workers=1", "--ps=0", program=["sh", "job.sh"])
    run = rigs.Run(command, tmp_path, {})
    try:
        run.saw("up")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait(20) == 143
        assert run.out == ["[worker 0] up", "[worker 0] saved"]
    finally:
        run.end()


def test_it_cannot_be_suspended(launch, tmp_path):
    program = """
        print("up", flush=True)
        wait_for("go")
    """
    run = launch(rigs.Local(), program, "--workers=1", "--ps=0")
    run.saw("up")
    run.process.send_signal(signal.SIGTSTP)
    (tmp_path / "go").touch()
    assert run.wait(20) == 0, run.err


def test_output_that_nobody_reads_holds_up_no_task(tmp_path):
    """The launcher's own standard output is a pipe that is full."""
    (tmp_path / "p.py").write_text(
        "for i in range(300_000):\n    print('x' * 60, i)\nopen('done', 'w').close()\n"
    )
    command = rigs.Local().command("--workers=1", "--ps=0", program=["python", "p.py"])
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(rigs.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 40
        while not (tmp_path / "done").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ""),
        (["nothing"], "'nothing' is no launcher; choose one of local"),
        (["local"], "there is no program after `--`"),
        (["local", "--workers=1", "python", "x.py"], "unexpected 'python' before `--`"),
        (["local", "--no_such", "--", "true"], "no_such"),
        (["slurm", "--signal=USR1@120", "--", "true"], "--signal=USR1@120 is not TERM and seconds"),
        (["ssh", "--", "true"], "--hosts is missing"),
        (["ssh", "--hosts=none.txt", "--", "true"], "--hosts=none.txt: cannot be read"),
    ],
)
def test_wrong_command_lines(tmp_path, arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(rigs.ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("launcher", ["local", "ssh"])
def test_help_lists_the_flags(tmp_path, launcher):
    done = subprocess.run(
        [sys.executable, "-m", "launch", launcher, "--help"],
        cwd=rigs.ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0
    for flag in ("workers", "ps", "grace", "log_dir", "ports", "job_restarts"):
        assert f"--{flag}:" in done.stdout
