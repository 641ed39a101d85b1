"""A launcher that waits for a host answers a signal soon all the same."""

import os
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


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_while_the_program_is_copied(launch, tmp_path, signum):
    (tmp_path / "rsync").write_text('#!/bin/sh\necho $$ >> "$(dirname "$0")/copies"\nsleep 1000\n')
    (tmp_path / "rsync").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = launch(FakeSsh(tmp_path), "", "--rsync", "--dry_run", environ=environ)
    assert run.wait(20) == 0, run.err
    assert not (tmp_path / "copies").exists()
    run = launch(FakeSsh(tmp_path), "", "--rsync", environ=environ)
    deadline = time.monotonic() + 20
    copies: list[str] = []
    while len(copies) < 2:
        assert time.monotonic() < deadline
        copies = (tmp_path / "copies").read_text().split() if (tmp_path / "copies").exists() else []
    run.process.send_signal(signum)
    assert run.wait(10) == 128 + signum, run.err
    assert not any("Traceback" in line for line in run.err)
    assert not rigs.living(tmp_path)


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
