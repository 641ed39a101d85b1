"""Launchers as fixtures: `rig` is each of them in turn, `launch` starts one with a program."""

import signal
import textwrap

import pytest

from tests.launch import rigs, slurm_cluster

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in the background, and a launcher would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ssh(tmp_path_factory):
    """Hosts with sshd, in network namespaces."""
    if why := rigs.why_no_ssh():
        pytest.skip(f"no hosts for ssh: {why}")
    made = rigs.Ssh(tmp_path_factory.mktemp("ssh"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def cluster():
    """A real Slurm with four nodes."""
    if why := slurm_cluster.missing():
        pytest.skip(f"no Slurm: {why}")
    made = slurm_cluster.SlurmCluster()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def slurm(cluster):
    """An allocation of two nodes."""
    made = slurm_cluster.Slurm(cluster)
    yield made
    made.close()


@pytest.fixture(params=["local", "ssh", "slurm"])
def rig(request):
    """Each launcher that runs tasks on hosts."""
    return rigs.Local() if request.param == "local" else request.getfixturevalue(request.param)


@pytest.fixture
def launch(tmp_path):
    """`launch(rig, program, *flags)`: a launcher at work, with a program's text as its tasks."""
    runs = []

    def start(rig, program, *flags, arguments=(), environ=None):
        path = tmp_path / "program.py"
        path.write_text(rigs.PRELUDE + textwrap.dedent(program))
        command = rig.command(*flags, program=["python", str(path), *arguments])
        runs.append(rigs.Run(command, tmp_path, environ or {}))
        return runs[-1]

    yield start
    for run in runs:
        run.end()
