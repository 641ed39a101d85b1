"""A real Slurm of four nodes on this machine: n1 and n2 without GPUs, n3 and n4 with two each.

The devices are files (`mknod`) behind which there is nothing; Slurm only counts and names them.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from tests.launch import rigs
from tests.launch.processes import free_ports

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "squeue")

_CONFIG = """
ClusterName=tfps
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
KillWait=5
MailProg=/bin/true
{nodes}
PartitionName=cpu Nodes=n1,n2 Default=YES State=UP
PartitionName=gpu Nodes=n3,n4 State=UP
PartitionName=all Nodes=n1,n2,n3,n4 State=UP
"""


_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=32{gres}"


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    absent = [name for name in NEEDED if not shutil.which(name, path=_path())]
    if absent:
        return f"no {', '.join(absent)} here (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class SlurmCluster:
    """Starts the daemons, and ends them again by their process ids."""

    def __init__(self):
        # A path to a socket has 108 characters at most, so pytest's folders are too deep.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))},
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": _path(),
        }

    def start(self) -> None:
        folder = self.folder
        host = socket.gethostname().partition(".")[0]
        port, *ports = free_ports(5)
        gres = ("", "", " Gres=gpu:2", " Gres=gpu:2")
        nodes = "\n".join(
            _NODE.format(name=f"n{i + 1}", host=host, port=ports[i], gres=gres[i]) for i in range(4)
        )
        config = _CONFIG.format(folder=folder, host=host, port=port, nodes=nodes)
        (folder / "slurm.conf").write_text(config)
        (folder / "gres.conf").write_text(f"NodeName=n3,n4 Name=gpu File={folder}/nvidia[0-1]\n")
        for i in range(2):
            os.mknod(folder / f"nvidia{i}", 0o600 | 0o020000, os.makedev(195, i))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={folder}/munge.sock",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munge.seed",
        )
        self.run("slurmctld", "-f", self.environ["SLURM_CONF"])
        for node in ("n1", "n2", "n3", "n4"):
            self.run("slurmd", "-N", node, "-f", self.environ["SLURM_CONF"])
        wait_until(
            lambda: self.run("sinfo", "-h", "-o", "%T %D").strip() == "idle 4", 30, self.logs
        )

    def stop(self) -> None:
        subprocess.run(["scancel", "--user=root", "-f"], env=self.environ, timeout=30)
        try:
            wait_until(lambda: not self.run("squeue", "-h", "-t", "R,CG,PD"), 20)
        finally:
            pids = [int(path.read_text()) for path in self.folder.glob("*.pid")]
            for signum in (signal.SIGTERM, signal.SIGKILL):
                for pid in pids:
                    if alive(pid):
                        os.kill(pid, signum)
                deadline = time.monotonic() + 10
                while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
                    time.sleep(0.05)
            shutil.rmtree(self.folder)

    def run(self, *command: str, timeout: float = 60, **kwargs) -> str:
        """Runs a command to its end; returns what it writes."""
        # A daemon keeps its starter's output open, so that is a file and no pipe.
        with tempfile.TemporaryFile() as out:
            done = subprocess.run(
                command, env=self.environ, stdout=out, stderr=out, timeout=timeout, **kwargs
            )
            out.seek(0)
            text = out.read().decode("utf-8", "replace")
        assert done.returncode == 0, f"{command}: {text}"
        return text

    def logs(self) -> str:
        return "\n".join(p.read_text()[-2000:] for p in self.folder.glob("*.log"))

    def states(self, job: str) -> str:
        return self.run("squeue", "-h", "-j", job, "-t", "all", "-o", "%T").strip()

    def exit_code(self, job: str) -> int:
        shown = self.run("scontrol", "show", "job", job)
        return int(shown.split("ExitCode=")[1].split(":")[0])


class Slurm(rigs.Local):
    """`launch slurm` within an allocation of half of n1 and n2."""

    name = "slurm"
    hosts = ("n1", "n2")

    def __init__(self, cluster: SlurmCluster):
        size = ["--nodes=2", "--ntasks-per-node=4", "--partition=cpu"]
        said = cluster.run("salloc", "--no-shell", *size)
        self.job = said.split("Granted job allocation ")[1].split()[0]
        self._cluster = cluster
        variables = {
            "SLURM_CONF": cluster.environ["SLURM_CONF"],
            "SLURM_JOB_ID": self.job,
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_TASKS_PER_NODE": "4(x2)",
            "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
        }
        self.prefix = ("env", *(f"{name}={value}" for name, value in variables.items()))

    def close(self) -> None:
        self._cluster.run("scancel", self.job)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until(condition, timeout: float, told=lambda: "") -> None:
    """Waits until `condition()` is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s. {told()}"
        time.sleep(0.1)
