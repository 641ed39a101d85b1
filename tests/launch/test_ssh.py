"""`launch ssh` against real daemons, each in a network namespace; and the hosts file."""

import os
import pathlib
import shutil
import sys
import time

import pytest

from launch import errors, ssh as launcher
from tests.launch import rigs

HERE = launcher.Defaults("/usr/bin/python3", "/home/me")


def parsed(text, monkeypatch):
    monkeypatch.setattr(launcher, "address_of", lambda name, ssh: f"{name}.known")
    return launcher.parse(text, "hosts.txt", HERE)


def test_hosts_file(monkeypatch):
    first, second = parsed(
        "# two hosts\nn1 slots=4 gpus=8 address=10.0.0.3 # big\n\n"
        "me@n2 roles=chief,ps python=/opt/python folder=/data\n",
        monkeypatch,
    )
    assert (first.name, first.slots, first.gpus, first.address) == ("n1", 4, 8, "10.0.0.3")
    assert (first.python, first.folder, first.roles) == ("/usr/bin/python3", "/home/me", ())
    assert (second.python, second.folder, second.roles) == ("/opt/python", "/data", ("chief", "ps"))
    assert (second.slots, second.gpus, second.address) == (None, None, "me@n2.known")
    assert second.command[-2:] == ["me@n2", second.command[-1]]
    # It never asks, and no check of known hosts is switched off.
    assert "BatchMode=yes" in second.command
    assert "HostKey" not in " ".join(second.command)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no host"),
        ("n1 slot=4", "line 1: 'slot=4' is no setting; write key=value with one of slots"),
        ("n1\nn2 slots=many", "line 2: slots=many is no number; write slots=4"),
        ("n1 slots=-1", "slots=-1 is no number"),
        ("n1 gpus=", "gpus has no value"),
        ("n1 gpus=1 gpus=2", "gpus is there twice"),
        ("n1\nn1", "line 2: host 'n1' is there already"),
        ("n1 roles=boss", "roles has 'boss'"),
        ("-oProxyCommand=x", "it begins with '-oProxyCommand=x'"),
        ("slots=4", "it begins with 'slots=4'; begin with the host's name"),
    ],
)
def test_wrong_hosts_files(monkeypatch, text, said):
    with pytest.raises(errors.SpecificationError) as caught:
        parsed(text, monkeypatch)
    assert "hosts.txt" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def refused(ssh, tmp_path, hosts, *flags):
    """What the launcher says of hosts with which it cannot begin, and its exit code."""
    (tmp_path / "hosts").write_text(hosts)
    command = ssh.command(
        f"--hosts={tmp_path}/hosts", *flags, program=["python", "-c", "print('started')"]
    )
    run = rigs.Run(command, tmp_path, {})
    try:
        begun = time.monotonic()
        code = run.wait(40)
        assert time.monotonic() - begun < 20
        assert not run.out, run.out
        return code, run.err
    finally:
        run.end()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("host", "said"),
    [
        pytest.param("worker1", "Permission denied", id="refuses"),
        pytest.param("ps1", "Host key verification failed", id="has another key than is known"),
    ],
)
def test_a_host_that_ssh_does_not_reach(ssh, tmp_path, host, said):
    code, (line,) = refused(ssh, tmp_path, f"worker0\n{host}\n")
    assert code == 75
    assert line.startswith(f"error: host {host}: ")
    assert said in line


@pytest.mark.processes
def test_all_hosts_that_fail_are_named(ssh, tmp_path):
    code, lines = refused(ssh, tmp_path, "worker1\nps1\nnowhere.invalid\n")
    assert code == 75
    assert sorted(line.split(":")[1] for line in lines) == [
        " host nowhere.invalid",
        " host ps1",
        " host worker1",
    ]


@pytest.mark.processes
def test_a_host_that_does_not_answer(ssh, tmp_path):
    """Its packets vanish; no connection is refused."""
    ssh.network.unplug("ps0")
    try:
        code, (line,) = refused(ssh, tmp_path, "worker0\nps0\n")
    finally:
        plug(ssh.network, "ps0")
    assert code == 75
    assert line.startswith("error: host ps0: ")


def plug(network, host):
    network._ip("switch", "link", "set", host, "up")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("setting", "code", "said", "remedy"),
    [
        ("python=/opt/none/python3", 75, "there is no /opt/none/python3", "--python"),
        ("folder=/opt/none", 127, "there is no folder /opt/none", "--rsync"),
    ],
)
def test_what_is_not_on_a_host(ssh, tmp_path, setting, code, said, remedy):
    ended, (line,) = refused(ssh, tmp_path, f"worker0\nps0 {setting}\n")
    assert ended == code
    assert f"host ps0: {said}" in line
    assert remedy in line


def pythons_of_other_versions():
    """Other Pythons of this machine, oldest first."""
    found = [
        *pathlib.Path(os.path.expanduser("~/.pyenv/versions")).glob("3.*/bin/python3"),
        *(pathlib.Path(p) for v in range(7, 15) if (p := shutil.which(f"python3.{v}"))),
    ]
    versions = {}
    for path in found:
        if version := rigs.version(path):
            versions[tuple(map(int, version.split(".")[:2]))] = path
    versions.pop(sys.version_info[:2], None)
    return [path for version, path in sorted(versions.items()) if version >= (3, 7)]


@pytest.mark.processes
def test_a_wrong_version(ssh, tmp_path):
    others = pythons_of_other_versions()
    if not others:
        pytest.skip("this machine has no Python of another version")
    for other in {others[0], others[-1]}:
        code, (line,) = refused(ssh, tmp_path, f"worker0\nps0 python={other}\n")
        assert code == 3, line
        assert f"has Python {'.'.join(rigs.version(other).split('.')[:2])}" in line
        assert "host ps0 (" in line


@pytest.mark.processes
def test_another_tensorflow(ssh, tmp_path):
    fake = tmp_path / "fake"
    (fake / "tensorflow-2.3.4.dist-info").mkdir(parents=True)
    (fake / "tensorflow-2.3.4.dist-info" / "METADATA").write_text(
        "Name: tensorflow\nVersion: 2.3.4"
    )
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={fake} exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    code, (line,) = refused(ssh, tmp_path, f"worker0\nps0 python={wrapper}\n")
    assert code == 3
    assert "has TensorFlow 2.3.4" in line


@pytest.mark.processes
def test_hosts_that_do_not_reach_each_other(ssh, tmp_path):
    """A route that leads nowhere, on one of them, as a firewall between them would have it."""
    address = ssh.network.address("ps0", 0).rpartition(":")[0]
    route = ["route", "add", "unreachable", address]
    ssh.network._ip("worker0", *route)
    try:
        code, (line,) = refused(ssh, tmp_path, "worker0\nps0\n")
    finally:
        ssh.network._ip("worker0", "route", "del", "unreachable", address)
    assert code == 3
    assert line.startswith(
        "error: host worker0 does not reach host ps0, where worker 1 will listen"
    )
    assert f"{address}:" in line
    assert "no route to host" in line


@pytest.mark.processes
def test_rsync(ssh, launch, tmp_path):
    (tmp_path / "module.py").write_text("answer = 42\n")
    (tmp_path / ".gitignore").write_text("secret\n")
    (tmp_path / "secret").write_text("x")
    copies = [tmp_path / "copy0", tmp_path / "copy1"]
    (tmp_path / "hosts").write_text(
        f"worker0 folder={copies[0]}/deep\nps0 folder={copies[1]}/deep\n"
    )
    program = """
        sys.path.insert(0, os.getcwd())
        import module
        print("from", module.__file__, module.answer)
        if role != "chief":
            serve_until_term()
    """
    run = launch(ssh, program, f"--hosts={tmp_path}/hosts", "--rsync", "--workers=2", "--ps=1")
    assert run.wait() == 0, run.err
    assert f"[worker 0] from {copies[0]}/deep/module.py 42" in run.out
    assert f"[worker 1] from {copies[1]}/deep/module.py 42" in run.out
    assert not list(tmp_path.glob("copy*/deep/secret"))


@pytest.mark.processes
@pytest.mark.timeout(150)
def test_a_host_that_vanishes_and_comes_back(ssh, launch, tmp_path):
    """Its tasks end there by themselves, and go on there when it is back."""
    program = """
        print("life", life, flush=True)
        if role == "chief":
            while not os.path.exists(os.path.join(here, "again")):
                time.sleep(0.1)
        else:
            if (role, life) == ("worker", 2):
                touch("again")
            serve_until_term()
    """
    (tmp_path / "hosts").write_text("worker0 roles=chief,ps\nps0 roles=worker\n")
    run = launch(
        ssh, program, f"--hosts={tmp_path}/hosts", "--workers=1", "--ps=1", "--worker_restarts=1"
    )
    run.saw(r"\[worker 0\] life 1")
    first = int((tmp_path / "worker-0.lives").read_text())
    ssh.network.unplug("ps0")
    unplugged = time.monotonic()
    try:
        line = run.saw("host ps0 is lost", timeout=40)
        assert time.monotonic() - unplugged < 30
        while os.path.exists(f"/proc/{first}"):
            assert time.monotonic() - unplugged < 40, "the agent there went on"
            time.sleep(0.1)
    finally:
        plug(ssh.network, "ps0")
    assert run.wait(90) == 0, (line, run.err)
    assert "[worker 0] life 2" in run.out


@pytest.mark.processes
@pytest.mark.timeout(150)
def test_a_job_goes_on_without_a_lost_host(ssh, launch, tmp_path):
    program = """
        print("life", life, "on", config["cluster"][role][index], flush=True)
        if role == "chief":
            time.sleep(60 if life == 1 else 1)
        else:
            serve_until_term()
    """
    (tmp_path / "hosts").write_text("worker0\nps0 roles=worker\n")
    run = launch(
        ssh,
        program,
        *(f"--hosts={tmp_path}/hosts", "--workers=2", "--ps=1"),
        *("--worker_restarts=0", "--job_restarts=1"),
    )
    run.saw(r"\[worker 1\] life 1")
    ssh.network.unplug("ps0")
    try:
        assert run.wait(90) == 0, run.err
    finally:
        plug(ssh.network, "ps0")
    (line,) = [line for line in run.out if line.startswith("[worker 1] life 2")]
    address = ssh.network.address("worker0", 0).rpartition(":")[0]
    assert f"on {address}:" in line
