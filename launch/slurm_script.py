"""The batch script of a job, and what starts an agent on a node that the job has."""

import dataclasses
import math
import shlex
from collections.abc import Sequence

from launch import topology
from launch.slurm_variables import Node
from launch.topology import Role

# What srun reads from the environment as options of its own. They describe the job as a whole, or
# the step in which the launcher runs, and must not describe the step of an agent.
_OPTIONS = (
    *("NTASKS", "NPROCS", "NTASKS_PER_NODE", "NTASKS_PER_CORE", "NTASKS_PER_SOCKET"),
    *("NTASKS_PER_GPU", "TASKS_PER_NODE", "CPUS_PER_TASK", "CPUS_PER_GPU", "THREADS_PER_CORE"),
    *("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GPUS_PER_SOCKET", "GPU_BIND", "TRES_PER_TASK"),
    *("MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE", "MEM_BIND", "CPU_BIND", "DISTRIBUTION"),
    *("HINT", "EXCLUSIVE", "OVERCOMMIT", "LABELIO", "STDINMODE", "STDOUTMODE", "STDERRMODE"),
    *("KILL_BAD_EXIT", "WAIT", "TIMELIMIT", "MULTI_PROG"),
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of Slurm.

    Attributes:
      name: the job's name.
      roles: the tasks and what each needs.
      partition: the partition of workers, and of all tasks if there is no other; empty for Slurm's
        default.
      ps_partition: the partition of the chief and parameter servers; empty for the same.
      time: the limit as Slurm takes it, such as 12:00:00; empty for the partition's.
      workers_per_node: workers on each node, or None for what Slurm finds.
      signal: the notice before the time is over, such as TERM@120; empty for none.
      requeue: whether the job begins again after such a notice, a preemption or a node's failure.
      options: further options of sbatch, such as `--account=physics`, for every component.
    """

    name: str
    roles: tuple[Role, ...]
    partition: str = ""
    ps_partition: str = ""
    time: str = ""
    workers_per_node: int | None = None
    signal: str = ""
    requeue: bool = False
    options: tuple[str, ...] = ()


def script(request: Request, command: Sequence[str]) -> str:
    """Returns the text that sbatch takes.

    Args:
      request: what is asked for.
      command: what runs within the allocation, on the first node of the first component. It takes
        the place of the shell, so that Slurm's signals reach it.
    """
    common = [f"--job-name={request.name}", "--requeue" if request.requeue else "--no-requeue"]
    if not request.requeue:
        common.append("--no-kill")  # The loss of a node is the launcher's to handle.
    if request.signal:
        common.append(f"--signal=B:{request.signal}")
    every = [*([f"--time={request.time}"] if request.time else []), *request.options]
    first, *others = _components(request)
    lines = ["#!/bin/sh", *_directives([*common, *every, *first])]
    for component in others:
        lines += ["#SBATCH hetjob", *_directives([*every, *component])]
    return "\n".join([*lines, "", f"exec {shlex.join(command)}", ""])


def _directives(options: Sequence[str]) -> list[str]:
    # sbatch takes these lines apart as a shell would.
    return [f"#SBATCH {shlex.quote(option)}" for option in options]


def _components(request: Request) -> list[list[str]]:
    """The options of each component: one, or servers and workers apart if they need different."""
    servers = [role for role in request.roles if role.name != topology.WORKER]
    workers = [role for role in request.roles if role.name == topology.WORKER]
    apart = request.ps_partition or any(
        (r.gpus, r.cores, r.memory) != (workers[0].gpus or 0, workers[0].cores, workers[0].memory)
        for r in servers
    )
    if not (servers and apart):
        return [_component(request, request.roles, request.partition)]
    return [
        _component(request, servers, request.ps_partition or request.partition),
        _component(request, workers, request.partition),
    ]


def _component(request: Request, roles: Sequence[Role], partition: str) -> list[str]:
    """The options of a component whose tasks all get what the largest of them needs."""
    cores = max(max(role.cores for role in roles), 1)
    memory = max(role.memory for role in roles)
    gpus = max(role.gpus or 0 for role in roles)
    found = [f"--ntasks={sum(role.count for role in roles)}", f"--cpus-per-task={cores}"]
    if partition:
        found.append(f"--partition={partition}")
    if memory:
        found.append(f"--mem-per-cpu={math.ceil(memory / cores / 2**20)}M")
    if gpus:
        found.append(f"--gpus-per-task={gpus}")
    if request.workers_per_node and any(role.name == topology.WORKER for role in roles):
        found.append(f"--ntasks-per-node={request.workers_per_node}")
    return found


def srun(node: Node) -> tuple[str, ...]:
    """Returns the command that runs another one on a node, with all that the job has there.

    Steps share what the job has (`--overlap`). `--gres` is given as a number: a job that was asked
    for with `--gpus-per-task=1` would otherwise show one device to the agent, which is one task.
    """
    command = ["env", *(part for name in _OPTIONS for part in ("-u", f"SLURM_{name}")), "srun"]
    if node.group is not None:
        command.append(f"--het-group={node.group}")
    command += ["--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node.name}", "--mem=0"]
    if node.cpus:
        command.append(f"--cpus-per-task={node.cpus}")
    if node.gpus:
        command.append(f"--gres=gpu:{node.gpus}")
    # Nothing of MPI is needed, and what an agent writes goes on at once.
    return (*command, "--mpi=none", "--unbuffered", "--quiet")
