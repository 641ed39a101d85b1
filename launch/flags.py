"""The flags that all launchers share, and what they amount to."""

import os
import re
from typing import Any

from absl import flags

from launch import errors, topology
from launch.output import Output
from launch.restarts import Policy

# Values of their own, since a program that uses `launch` may have flags of the same names.
FLAGS = flags.FlagValues()

flags.DEFINE_integer("workers", 2, "Number of workers.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "ps",
    1,
    "Number of parameter servers. With 0 the job is for MultiWorkerMirroredStrategy: there is no "
    "chief, worker 0 leads.",
    lower_bound=0,
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "chief",
    None,
    "Whether there is a chief. Default: if there are parameter servers.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "gpus_per_worker",
    None,
    "GPUs of each worker. Default: its share of those of its host. Chief and ps see none.",
    lower_bound=0,
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "evaluator",
    False,
    "Whether a task evaluates the job's snapshots beside it. It needs parameter servers and the "
    "program's --snapshots.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "spares",
    0,
    "Servers that wait to take the place of a ps that is lost for more than 10 s. Each needs what "
    "a ps needs.",
    lower_bound=0,
    flag_values=FLAGS,
)
for _role in ("worker", "ps", "chief", "evaluator"):
    flags.DEFINE_integer(
        f"cores_per_{_role}",
        0,
        f"Cores of each {_role}; 0 asks for none.",
        lower_bound=0,
        flag_values=FLAGS,
    )
    flags.DEFINE_string(
        f"memory_per_{_role}",
        "",
        f"Memory of each {_role}, such as 8G; asked for where it counts.",
        flag_values=FLAGS,
    )
flags.DEFINE_multi_string(
    "env",
    [],
    "NAME or NAME=VALUE: a variable for all tasks. With NAME alone, the launcher's own value: use "
    "that for secrets, since command lines can be seen by others.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "log_dir",
    None,
    "Folder for a file with the output of each task. Default: none is written.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "dry_run", False, "Check, print what would run where, and start nothing.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "worker_restarts", 10, "Restarts of workers in an hour.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "ps_restarts", 3, "Restarts of parameter servers in an hour.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "chief_restarts", 3, "Restarts of the chief in an hour.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "evaluator_restarts",
    3,
    "Restarts of the evaluator in an hour; the job goes on without one that has used them.",
    lower_bound=0,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "job_restarts",
    0,
    "How often the job as a whole may begin again.",
    lower_bound=0,
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "no_restart", False, "Start nothing again: the first loss ends the job.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "without_ps",
    False,
    "Whether the job goes on without a ps that has used its restarts or whose host is lost: for "
    "programs that place its part on another ps (--on_lost_ps=reshard).",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "without_workers",
    False,
    "Whether the job goes on without a worker that has used its restarts or whose host is lost, "
    "while there is another one.",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "host_timeout",
    600.0,
    "Seconds for which a host that is lost, or does not answer, is tried again.",
    lower_bound=0.0,
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "grace",
    30.0,
    "Seconds between SIGTERM, by which tasks are told to end, and SIGKILL.",
    0.0,
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "settle",
    5.0,
    "Seconds that the other tasks have to end by themselves when the job is done or has failed.",
    lower_bound=0.0,
    flag_values=FLAGS,
)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def roles() -> tuple[topology.Role, ...]:
    """Returns the roles that the flags ask for.

    Raises:
      FlagError: a flag's value is wrong.
    """
    names = ("worker", "ps", "chief", "evaluator")
    if FLAGS.evaluator and not FLAGS.ps:
        raise errors.FlagError(
            "--evaluator follows the snapshots of parameter servers, and --ps=0 has none; leave "
            "out one of the two"
        )
    if FLAGS.spares and not FLAGS.ps:
        raise errors.FlagError(
            f"--spares={FLAGS.spares} stand in for parameter servers, and --ps=0 has none; leave "
            "out one of the two"
        )
    return topology.roles(
        FLAGS.workers,
        FLAGS.ps,
        FLAGS.chief,
        cores={name: _value(f"cores_per_{name}") for name in names},
        memory={name: memory(f"memory_per_{name}", _value(f"memory_per_{name}")) for name in names},
        gpus_per_worker=FLAGS.gpus_per_worker,
        evaluator=FLAGS.evaluator,
        spares=FLAGS.spares,
    )


def policy() -> Policy:
    """Returns what the flags allow to be started again."""
    once, names = FLAGS.no_restart, ("worker", "ps", "chief", "evaluator")
    budgets = {role: 0 if once else _value(f"{role}_restarts") for role in names}
    return Policy(
        budgets | {topology.SPARE: budgets[topology.PS]},
        0 if once else FLAGS.job_restarts,
        FLAGS.grace,
        FLAGS.settle,
        FLAGS.without_ps,
        FLAGS.without_workers,
        0.0 if once else FLAGS.host_timeout,
    )


def output() -> Output:
    """Returns what shows the output of tasks, and writes it to the folder of --log_dir.

    Raises:
      FlagError: the folder cannot be made or written to.
    """
    try:
        return Output(FLAGS.log_dir)
    except OSError as e:
        raise errors.FlagError(f"--log_dir={FLAGS.log_dir}: {e}") from e


def environ() -> dict[str, str]:
    """Returns the variables of --env.

    Raises:
      FlagError: a variable has no name, is not set, or is one that the launcher sets.
    """
    found = {}
    for item in FLAGS.env:
        name, given, value = item.partition("=")
        if not name or name in ("TF_CONFIG", "CUDA_VISIBLE_DEVICES"):
            raise errors.FlagError(
                f"--env={item}: the launcher sets TF_CONFIG and CUDA_VISIBLE_DEVICES for each "
                "task; name another variable"
            )
        if not given and name not in os.environ:
            raise errors.FlagError(
                f"--env={name}: it is not set here; set it, or say --env={name}=VALUE"
            )
        found[name] = value if given else os.environ[name]
    return found


def _value(name: str) -> Any:
    return FLAGS[name].value


def memory(flag: str, text: str) -> int:
    """Returns the bytes of a text such as "8G"; 0 for an empty one.

    Raises:
      FlagError: it is no number with K, M, G or T.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if text and not match:
        raise errors.FlagError(f"--{flag}={text} is no size; write it like 8G or 512M")
    return int(match[1]) * _UNITS[match[2].upper()] if match else 0
