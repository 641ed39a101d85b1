"""A launcher that waits for a host answers a signal soon all the same."""

import pathlib
import signal
import time

import pytest

from tests.launch import rigs

pytestmark = [pytest.mark.processes, pytest.mark.timeout(60)]

# Stands in for ssh: the hosts are this machine, and connections hang as soon as `hang` is there.
FAKE = """#!/bin/sh
here=$(dirname "$0")
for last; do :; done
[ "$1" = -G ] && exec echo "hostname 127.0.0.1"
[ -e "$here/hang" ] && touch "$here/hangs" && exec sleep 1000
exec sh -c "$last"
"""


class FakeSsh(rigs.Local):
    """Two hosts by a program that stands in for ssh."""

    name = "ssh"

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "ssh").write_text(FAKE)
        (folder / "ssh").chmod(0o755)
        (folder / "hosts").write_text("a roles=chief,ps\nb roles=worker\n")
        self.flags = (f"--ssh={folder}/ssh", f"--hosts={folder}/hosts", *rigs.Local.flags)


def until_it_hangs(folder):
    deadline = time.monotonic() + 20
    while not (folder / "hangs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_while_a_lost_host_is_connected_to_again(launch, tmp_path):
    program = """
        def end(*_):
            print("told", flush=True)
            sys.exit(143)
        signal.signal(signal.SIGTERM, end)
        print("up", flush=True)
        if role == "worker":
            wait_for("chief-0.up"), wait_for("ps-0.up")
            touch("hang")
            stat = open(f"/proc/{os.getppid()}/stat").read()  # Of the keeper, below the agent.
            os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)
        touch(f"{role}-{index}.up")
        time.sleep(100)
    """
    run = launch(FakeSsh(tmp_path), program, "--workers=1", "--ps=1")
    run.saw("it is started again in")
    until_it_hangs(tmp_path)
    begun = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    run.saw(r"\[ps 0\] told", timeout=5)
    assert run.wait(10) == 143, run.err
    assert time.monotonic() - begun < 5
    assert sum(line.endswith("] told") for line in run.out) == 2


def test_before_the_job_begins(launch, tmp_path):
    (tmp_path / "hang").touch()
    run = launch(FakeSsh(tmp_path), "", "--workers=1", "--ps=1")
    until_it_hangs(tmp_path)
    begun = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    assert run.wait(10) == 130, run.err
    assert time.monotonic() - begun < 5
    (line,) = run.err
    assert "SIGINT came before the job could begin" in line
