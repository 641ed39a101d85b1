"""`launch slurm`: submits a job that runs the same command within its allocation, or runs it there.

Within an allocation (of sbatch or salloc) every node has an agent, started by `srun`; the tasks are
theirs. Outside of one, a batch script is written and given to sbatch.
"""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from launch import (
    errors,
    exit_codes,
    flags as common,
    host_flags,
    slurm_script,
    slurm_variables,
    topology,
)
from launch.launcher import Launcher
from launch.machine import Machine
from launch.slurm_variables import Node

FLAGS = flags.FlagValues()  # Those of the launcher, and then those of all launchers.

flags.DEFINE_string("job_name", "tfps", "The job's name in Slurm.", flag_values=FLAGS)
flags.DEFINE_string(
    "partition", "", "Partition of workers, and of all tasks by default.", flag_values=FLAGS
)
flags.DEFINE_string(
    "ps_partition", "", "Partition of the chief and of parameter servers.", flag_values=FLAGS
)
flags.DEFINE_string("time", "", "Time limit of the job, such as 12:00:00.", flag_values=FLAGS)
flags.DEFINE_integer(
    "workers_per_node", None, "Workers on each node.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_string(
    "signal",
    "TERM@120",
    "Notice before the time is over: TERM and seconds. Empty for none.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "requeue",
    False,
    "Queue the job again when it is preempted or its time is over.",
    flag_values=FLAGS,
)
host_flags.define(FLAGS)
flags.DEFINE_multi_string(
    "sbatch",
    [],
    "A further option of sbatch, such as --sbatch=--account=physics.",
    flag_values=FLAGS,
)
FLAGS.append_flag_values(common.FLAGS)

_TIMEOUT = 60.0  # s for one of Slurm's commands
# What is given again to the launcher within the allocation is not for sbatch alone.
_SBATCH_ONLY = {
    "sbatch",
    "partition",
    "ps_partition",
    "time",
    "workers_per_node",
    "job_name",
    "dry_run",
}


def run(program: Sequence[str]) -> int | None:
    """Submits the job; returns the exit code, or None within an allocation.

    Args:
      program: the program and its arguments.

    Raises:
      LaunchError: a flag is wrong, or Slurm does not take the job.
    """
    if "SLURM_JOB_ID" in os.environ:
        return None
    text = slurm_script.script(requested(), [*_again(), "--", *program])
    if FLAGS.dry_run:
        print(text, end="")
        return exit_codes.DONE
    environ = {**os.environ, **common.environ()}
    job = _call(["sbatch", "--parsable"], stdin=text, environ=environ).strip().partition(";")[0]
    print(
        f"job {job} is submitted; it writes to slurm-{job}.out here; end it with: scancel {job}",
        file=sys.stderr,
    )
    return exit_codes.DONE


def make(argv: Sequence[str]) -> Launcher:
    """Returns the launcher for the allocation in which this process runs.

    Args:
      argv: the program and its arguments.

    Raises:
      LaunchError: Slurm's variables or answers cannot be read.
    """
    return host_flags.launcher(machines(os.environ), argv, FLAGS)


def after(code: int) -> int:
    """Queues the job again if it was ended by a notice that its time is over.

    Slurm does so by itself when it preempts a job or a node fails. A job that somebody has
    cancelled is no longer running for Slurm, and is left alone.

    Args:
      code: what the job ended with.

    Returns:
      The launcher's exit code.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if FLAGS.requeue and code == exit_codes.TERMINATED and _state(job) == "RUNNING":
        print(f"[launch] job {job} is queued again", file=sys.stderr, flush=True)
        _call(["scontrol", "requeue", job])
    return code


def requested() -> slurm_script.Request:
    """Returns what the flags ask of Slurm.

    Raises:
      FlagError: a flag's value is wrong.
    """
    _require_notice(FLAGS.signal, FLAGS.grace)
    return slurm_script.Request(
        name=FLAGS.job_name,
        roles=common.roles(),
        partition=FLAGS.partition,
        ps_partition=FLAGS.ps_partition,
        time=FLAGS.time,
        workers_per_node=FLAGS.workers_per_node,
        signal=FLAGS.signal,
        requeue=FLAGS.requeue,
        options=tuple(FLAGS.sbatch),
    )


def _require_notice(text: str, grace: float) -> None:
    match = re.fullmatch(r"TERM@(\d+)", text)
    if text and not match:
        raise errors.FlagError(
            f"--signal={text} is not TERM and seconds, such as TERM@120; the launcher takes no "
            "other signal for a notice"
        )
    if match and int(match[1]) < grace:
        raise errors.FlagError(
            f"--signal={text} comes {match[1]} s before the end, but --grace={grace:g} gives tasks "
            "longer; give notice earlier or lower --grace"
        )


def _again() -> list[str]:
    """The command that does the same within the allocation.

    Values of --env are in the environment that sbatch passes on, and not in the script.
    """
    module = sys.modules[__name__]
    found = [sys.executable, "-m", "launch", "slurm"]
    shared = common.FLAGS.get_key_flags_for_module(common)
    for flag in [*FLAGS.get_key_flags_for_module(module), *shared]:
        if not flag.present or flag.name in _SBATCH_ONLY:
            continue
        if flag.name == "env":
            found += [f"--env={item.partition('=')[0]}" for item in flag.value or ()]
        else:
            found.append(flag.serialize())
    return found


def machines(environ: Mapping[str, str]) -> list[Machine]:
    """Returns the job's nodes as hosts for tasks.

    In a heterogeneous job, workers run in all components but the first, and the other tasks in the
    first. Slurm's count of tasks for a node says how many workers it takes.

    Args:
      environ: Slurm's variables.

    Raises:
      LaunchError: the variables are not those of an allocation, or Slurm does not answer.
    """
    nodes = _with_gpus(slurm_variables.allocation(environ), environ)
    listed = _call(["scontrol", "show", "node", "--oneliner", _names(nodes)])
    addresses = slurm_variables.node_addresses(listed)
    counted = [n.tasks for n in nodes if n.group != 0]
    slots = all(counted) and sum(t or 0 for t in counted) >= FLAGS.workers
    return [
        Machine(
            name=node.name if n == [m.name for m in nodes].index(node.name) else f"{node.name}/{n}",
            address=addresses.get(node.name, node.name),
            python=sys.executable,
            folder=os.getcwd(),
            transport=slurm_script.srun(node),
            slots=node.tasks if slots else None,
            gpus=node.gpus,
            roles=_roles(node),
        )
        for n, node in enumerate(nodes)
    ]


def _roles(node: Node) -> tuple[str, ...]:
    if node.group is None or not (FLAGS.ps or FLAGS.chief):
        return ()
    servers = tuple(role for role in topology.ROLES if role != topology.WORKER)
    return servers if node.group == 0 else (topology.WORKER,)


def _names(nodes: Sequence[Node]) -> str:
    return ",".join(dict.fromkeys(node.name for node in nodes))


def _with_gpus(nodes: Sequence[Node], environ: Mapping[str, str]) -> list[Node]:
    """Asks Slurm for the GPUs of nodes of which the variables do not tell."""
    if all(node.gpus is not None for node in nodes):
        return list(nodes)
    job = environ.get("SLURM_JOB_ID_HET_GROUP_0") or environ["SLURM_JOB_ID"]
    found = slurm_variables.gpus_by_node(_call(["scontrol", "show", "job", "--details", job]))
    return [
        n if n.gpus is not None else dataclasses.replace(n, gpus=found.get(n.name, 0))
        for n in nodes
    ]


def _state(job: str) -> str:
    """What Slurm says of a job, such as RUNNING or COMPLETING."""
    return (
        _call(["squeue", "--noheader", f"--jobs={job}", "--format=%T"]).partition("\n")[0].strip()
    )


def _call(
    command: Sequence[str], stdin: str | None = None, environ: Mapping[str, str] | None = None
) -> str:
    """Runs one of Slurm's commands; returns what it writes.

    Raises:
      ProgramError: the command is not there.
      HostError: it does not end, or Slurm's controller does not answer.
      SpecificationError: Slurm refuses.
    """
    try:
        done = subprocess.run(
            command, input=stdin, env=environ, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except FileNotFoundError as e:
        raise errors.ProgramError(
            f"there is no {command[0]!r} here; start this on a machine with Slurm's commands, or "
            "see the script with --dry_run"
        ) from e
    except subprocess.TimeoutExpired as e:
        raise errors.HostError(
            f"{command[0]} did not end within {_TIMEOUT:g} s; see whether Slurm answers: sinfo"
        ) from e
    if done.returncode:
        lines = [x.removeprefix(f"{command[0]}: ") for x in done.stderr.splitlines()]
        said = " ".join(" ".join(lines).split()) or "failed without a word"
        away = re.search("unable to contact|timed out|connection", said, re.IGNORECASE)
        raise (errors.HostError if away else errors.SpecificationError)(f"{command[0]}: {said}")
    return done.stdout
