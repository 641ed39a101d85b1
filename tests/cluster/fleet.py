"""Server processes that tests kill, freeze and start again; they begin with TensorFlow imported."""

import json
import os
import pathlib
import signal
import time

import tfps
from tests import warm
from tfps.cluster import greeting, sockets
from tfps.cluster.members import Task

ROOT = pathlib.Path(__file__).parent.parent.parent


class Fleet:
    """The servers of a cluster whose chief is this process. A context manager: it ends them.

    Attributes:
      cluster: the cluster, as its chief sees it.
      processes: task -> its present process.
    """

    def __init__(self, folder: pathlib.Path, workers: int, ps: int, environ: dict | None = None):
        """Starts all servers; their output goes to files in `folder`."""
        ports = iter(sockets.free_ports(1 + workers + ps))
        jobs = {"chief": 1, "worker": workers, "ps": ps}
        spec = {job: [f"127.0.0.1:{next(ports)}" for _ in range(n)] for job, n in jobs.items()}
        self.cluster = tfps.Cluster(spec)
        self._folder, self._environ = folder, environ or {}
        self._stopped: set[Task] = set()
        self.processes: dict = {}
        for job in ("worker", "ps"):
            for index in range(jobs[job]):
                self.start(Task(job, index))

    def start(self, task: Task) -> None:
        """Starts a server at its address."""
        config = {"cluster": self.cluster.spec, "task": {"type": task.job, "index": task.index}}
        self.processes[task] = warm.start(
            ["-m", "tfps.serve"],
            ROOT,
            {**os.environ, "TF_CONFIG": json.dumps(config), **self._environ},
            self._folder / f"{task.job}{task.index}.log",
        )

    def log(self, task: Task) -> str:
        """Returns what a server, and those before it at its address, have written."""
        return (self._folder / f"{task.job}{task.index}.log").read_text()

    def wait(self, *tasks: Task, timeout: float = 60.0) -> None:
        """Waits until servers answer."""
        deadline = time.monotonic() + timeout
        for task in tasks:
            address = self.cluster.spec[task.job][task.index]
            while greeting.greet(address, 1.0) is not greeting.Answer.ANSWERS:
                assert time.monotonic() < deadline, (task, self.log(task))
                time.sleep(0.05)

    def kill(self, task: Task) -> None:
        """Kills a server and waits until it is gone."""
        self.processes[task].kill()
        self.processes[task].wait(10)

    def restart(self, task: Task, downtime: float = 0.0) -> None:
        """Kills a server, and starts it again after `downtime` s."""
        self.kill(task)
        time.sleep(downtime)
        self.start(task)
        self.wait(task)

    def freeze(self, task: Task) -> None:
        """Stops a server as a debugger would; waits until each of its threads stands still."""
        pid = self.processes[task].pid
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(task)
        deadline = time.monotonic() + 20.0
        while _states(pid) != {"T"}:
            assert time.monotonic() < deadline, _states(pid)
            time.sleep(0.01)

    def thaw(self, task: Task) -> None:
        """Lets a frozen server go on."""
        os.kill(self.processes[task].pid, signal.SIGCONT)
        self._stopped.discard(task)

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait(10)


def _states(pid: int) -> set[str]:
    """The states of a process's threads."""
    # The name before the state, in brackets, may have blanks.
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/stat")
    return {path.read_text().rpartition(")")[2].split()[0] for path in tasks}
