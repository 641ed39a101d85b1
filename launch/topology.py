"""A job as data: which roles and tasks there are, and what each task is told.

A launcher decides where tasks run; see `placement.py`.
"""

import dataclasses
import json
from collections.abc import Sequence

CHIEF, WORKER, PS, SPARE, EVALUATOR = "chief", "worker", "ps", "spare", "evaluator"

ROLES = (CHIEF, WORKER, PS, SPARE, EVALUATOR)


@dataclasses.dataclass(frozen=True)
class Role:
    """Tasks of one kind.

    Attributes:
      name: the job's name in TF_CONFIG: `chief`, `worker`, `ps`, `evaluator`, or `spare`, a server
        that waits to take the place of a lost parameter server.
      count: how many tasks there are.
      cores: processor cores for each task; 0 if nothing was asked.
      memory: bytes of memory for each task; 0 if nothing was asked.
      gpus: GPUs for each task. None for an equal share of what its host has, in workers only.
    """

    name: str
    count: int
    cores: int = 0
    memory: int = 0
    gpus: int | None = 0


@dataclasses.dataclass(frozen=True)
class Task:
    """One process of the job, and where it runs.

    Attributes:
      role: the job's name in TF_CONFIG.
      index: the task's index in its role.
      host: the name of its host, as the launcher knows it.
      address: the host's name or address, as the other tasks know it.
      port: where the task listens.
      gpus: the devices that it may see; None if nothing is said of devices.
      cores: the cores to which it is pinned; empty if it is not pinned.
    """

    role: str
    index: int
    host: str
    address: str
    port: int
    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Such as "worker 3"."""
        return f"{self.role} {self.index}"

    @property
    def endpoint(self) -> str:
        """The task's `host:port`; a version 6 address is put in brackets."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Topology:
    """All tasks of a job.

    Attributes:
      tasks: in the order in which they are started.
    """

    tasks: tuple[Task, ...]

    @property
    def leaders(self) -> tuple[str, ...]:
        """Names of the tasks with whose success the job is done: the chief, or all workers."""
        chiefs = tuple(t.name for t in self.tasks if t.role == CHIEF)
        return chiefs or tuple(t.name for t in self.tasks if t.role == WORKER)

    @property
    def evaluators(self) -> tuple[str, ...]:
        """Names of the tasks that may still evaluate when the leaders are done."""
        return tuple(t.name for t in self.tasks if t.role == EVALUATOR)

    def task(self, name: str) -> Task:
        """Returns the task of a name such as "worker 3"."""
        return next(t for t in self.tasks if t.name == name)

    @property
    def cluster(self) -> dict[str, list[str]]:
        """Role -> `host:port` of each of its tasks, as in TF_CONFIG. No evaluator is among them."""
        found: dict[str, list[str]] = {}
        order = (CHIEF, WORKER, PS, SPARE)
        members = [t for t in self.tasks if t.role in order]
        for task in sorted(members, key=lambda t: (order.index(t.role), t.index)):
            found.setdefault(task.role, []).append(task.endpoint)
        return found

    def tf_config(self, task: Task) -> str:
        """Returns the JSON text of TF_CONFIG for a task."""
        return json.dumps(
            {"cluster": self.cluster, "task": {"type": task.role, "index": task.index}}
        )

    def environ(self, task: Task) -> dict[str, str]:
        """Returns what a task's environment has beyond its host's: TF_CONFIG and its GPUs."""
        found = {"TF_CONFIG": self.tf_config(task)}
        if task.gpus is not None:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(task.gpus)
        return found

    def table(self) -> str:
        """Returns what runs where, as text with a line for each task."""
        head = ("task", "host", "address", "GPUs", "cores")
        rows = [
            (
                t.name,
                t.host,
                t.endpoint,
                "-" if t.gpus is None else ",".join(t.gpus) or "none",
                ranges(t.cores) or "all",
            )
            for t in self.tasks
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        )


def ranges(numbers: Sequence[int]) -> str:
    """Returns numbers as text such as "0-3,7"."""
    found: list[list[int]] = []
    for n in sorted(numbers):
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def roles(
    workers: int,
    ps: int,
    chief: bool | None = None,
    *,
    cores: dict[str, int] | None = None,
    memory: dict[str, int] | None = None,
    gpus_per_worker: int | None = None,
    evaluator: bool = False,
    spares: int = 0,
) -> tuple[Role, ...]:
    """Returns the roles of a job, servers first, so that the chief finds them.

    Args:
      workers: number of workers.
      ps: number of parameter servers. Without any, the job is for MultiWorkerMirroredStrategy, and
        worker 0 leads.
      chief: whether there is a chief. None for a chief if there are parameter servers.
      cores: role -> cores of each of its tasks.
      memory: role -> bytes of memory of each of its tasks.
      gpus_per_worker: GPUs of each worker; None for an equal share of its host's.
      evaluator: whether a task evaluates the job's snapshots beside it.
      spares: number of servers that wait to take the place of a lost parameter server. Each needs
        what a parameter server needs.
    """
    chief = ps > 0 if chief is None else chief
    counts = {PS: ps, SPARE: spares, WORKER: workers}
    counts |= {CHIEF: int(chief), EVALUATOR: int(evaluator)}
    asks = {SPARE: PS}  # role -> the role that it may have to stand in for
    return tuple(
        Role(
            name,
            count,
            (cores or {}).get(asks.get(name, name), 0),
            (memory or {}).get(asks.get(name, name), 0),
            gpus_per_worker if name == WORKER else 0,
        )
        for name, count in counts.items()
        if count
    )
