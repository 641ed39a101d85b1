"""A whole cluster on this machine: its servers are in this process, or processes of their own."""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable

from tfps import errors
from tfps.cluster import environment, gpus, greeting, server, shutdown, sockets
from tfps.cluster.restarts import Budget, Kept
from tfps.cluster.spec import Cluster

# How often processes are started again within an hour, by default.
RESTARTS = 60


class LocalCluster(Cluster):
    """Workers and parameter servers on 127.0.0.1, started by the constructor.

    Embedded servers (the default) are threads of this process: they are up in a fraction of a
    second, and gone with the process. With `processes=True`, each server is a process of its own,
    as on real machines, and is started again at its address when it dies. It costs a TensorFlow
    import (2 to 5 s) and a few hundred MB. In a process that has connected to servers elsewhere
    before, embedded servers could block one another, so they become processes, with a warning.

    Use the cluster as a context manager, or call `close`, to stop the processes. They also stop by
    themselves when this process is gone.

    Attributes:
      ended: the server processes that `close` has ended.
    """

    def __init__(
        self,
        workers: int = 2,
        ps: int = 2,
        processes: bool = False,
        cpu_devices: int = 1,
        restarts: int = RESTARTS,
        spares: int = 0,
    ):
        """Starts the servers.

        Args:
          workers: number of workers, at least 1.
          ps: number of parameter servers, at least 1.
          processes: whether each server is a process of its own. The machine's GPUs are then dealt
            out to the workers, while embedded workers all see all of them.
          cpu_devices: how many devices of the CPU each worker has, to try what is for GPUs.
          restarts: how often, within an hour, processes that died are started again, all together;
            0 for never. The delay before a restart doubles while the same server dies within 20 s.
          spares: number of servers that wait to take a lost ps's place; for `processes=True`.

        Raises:
          ClusterConfigError: a number is too low.
        """
        for name, count in (("workers", workers), ("ps", ps), ("cpu_devices", cpu_devices)):
            if count < 1:
                raise errors.ClusterConfigError(f"{name}={count}; a cluster needs at least 1")
        for name, count in (("restarts", restarts), ("spares", spares)):
            if count < 0:
                raise errors.ClusterConfigError(f"{name}={count}; give 0 or more")
        if spares and not processes:
            raise errors.ClusterConfigError(
                f"spares={spares}, but embedded servers are lost with this process or not at all; "
                "set processes=True"
            )
        ports = iter(sockets.free_ports(1 + workers + ps + spares))
        spec = {
            job: [f"127.0.0.1:{next(ports)}" for _ in range(count)]
            for job, count in (("chief", 1), ("worker", workers), ("ps", ps), ("spare", spares))
            if count
        }
        super().__init__(spec)
        self._kept: list[Kept] = []
        self.ended: list[subprocess.Popen] = []
        self._servers = []
        tasks = [(job, i) for job, i, _ in shutdown.servers(self)]
        if not processes and not server.can_embed(workers):
            processes = True
            warnings.warn(
                f"each of the {len(tasks)} servers becomes a process of its own: TensorFlow's pool "
                "of threads for servers in this process was made for fewer; make the largest "
                "embedded cluster first, or set processes=True",
                stacklevel=2,
            )
        if processes:
            ids = gpus.visible()
            own = gpus.dealt(ids, workers)
            counted = {environment.CPU_VARIABLE: str(cpu_devices)}
            budget = Budget(restarts)
            for job, i in tasks:
                devices = {**counted, **own[i]} if job == "worker" else gpus.hidden(ids)
                spawn = functools.partial(self._spawn, job, i, devices)
                self._kept.append(Kept(f"{job} {i}", spawn, budget))
        else:
            self._servers = [server.start(self, job, i, cpu_devices, True) for job, i in tasks]

    @property
    def _processes(self) -> list[subprocess.Popen]:
        """The present server processes, workers first."""
        return [kept.process for kept in self._kept]

    def pids(self, job: str) -> list[int]:
        """The process ids of the present servers of a job, "worker" or "ps"; none if embedded."""
        return [kept.process.pid for kept in self._kept if kept.name.split()[0] == job]

    def claim(self, timeout: float) -> None:
        """Does nothing: no other chief knows these servers."""

    def _spawn(self, job: str, index: int, devices: dict[str, str]) -> subprocess.Popen:
        config = {"cluster": self.started, "task": {"type": job, "index": index}}
        environ = dict(os.environ, TF_CONFIG=json.dumps(config), TFPS_PARENT=str(os.getpid()))
        environ.update(devices)
        # The child must find the packages that this program has found.
        environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        return _started([sys.executable, "-m", "tfps.serve"], environ, f"[{job} {index}] ")

    def leave(self) -> None:
        """Ends the server processes: no other chief knows them."""
        self.close("the chief was told to end by SIGTERM")

    def close(self, message: str = shutdown.DONE, timeout: float = 20.0) -> None:
        """Ends the server processes; embedded servers end with this process.

        Args:
          message: `DONE`, or why the job failed; then the servers exit with 75 instead of 0.
          timeout: seconds after which a process that does not end is killed.
        """
        if not self._kept:
            return
        for kept in self._kept:
            kept.release()
        shutdown.send(self, message)
        deadline = time.monotonic() + timeout
        addresses = {f"{job} {i}": address for job, i, address in shutdown.servers(self)}
        for kept in self._kept:
            process = kept.process
            if greeting.greet(addresses[kept.name], 1.0) is greeting.Answer.GONE:
                process.terminate()  # It is starting, and has not heard the message.
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.ended += self._processes
        self._kept = []


# What TensorFlow's C++ code says while it loads, whatever the log level.
_NOTE = re.compile(r"[IWE]\d{4} \d\d:|WARNING: All log messages before absl")


def _started(command: list[str], environ: dict[str, str], prefix: str) -> subprocess.Popen:
    """Starts a process whose standard error is copied to ours; see `_forward`."""
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",  # A library may write any bytes.
    )
    threading.Thread(target=_forward, args=(process.stderr, prefix), daemon=True).start()
    return process


def _forward(lines: Iterable[str], prefix: str) -> None:
    """Copies a server's standard error to ours, line by line, marked with its name.

    Where ours cannot be written, the lines are read all the same: a server whose pipe is full waits
    in the middle of what it does.
    """
    for line in lines:
        if not _NOTE.match(line):
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(prefix + line)
                sys.stderr.flush()
