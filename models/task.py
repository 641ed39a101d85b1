"""One program for every task of a cluster.

Without TF_CONFIG a binary starts a cluster on this machine. With TF_CONFIG the binary is the task
that the variable names.
"""

import os
import sys
from collections.abc import Callable

import tensorflow as tf
from absl import app, flags

import tfps
from models import allreduce, evaluation, network
from models.evaluation import Evaluation
from models.parameter_servers import ParameterServers
from models.way import Way
from tfps import errors, exit_codes

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(allreduce)
flags.adopt_module_key_flags(evaluation)

flags.DEFINE_integer("workers", 2, "Workers of the local cluster.", lower_bound=1)
flags.DEFINE_integer("ps", 2, "Parameter servers of the local cluster.", lower_bound=1)
flags.DEFINE_enum(
    "cluster",
    "inprocess",
    ["inprocess", "processes"],
    "The local cluster: servers within this process, or a process for each. Like --workers and "
    "--ps, used only where TF_CONFIG is not set.",
)
flags.DEFINE_float(
    "startup_timeout",
    os.environ.get("TFPS_STARTUP_TIMEOUT", 60.0),
    "Seconds that the chief waits for all workers and ps to answer; with --strategy=multiworker, "
    "seconds that each worker waits for the others. Default: TFPS_STARTUP_TIMEOUT, or 60.",
    lower_bound=0.0,
)

Connect = Callable[[], Way]


def run(train: Callable[[Connect], None]) -> int:
    """Runs this process's task: a worker or ps serves until the job ends, the chief trains.

    An evaluator evaluates the job's snapshots (`evaluation.py`). In an all-reduce (--strategy), all
    workers train.

    Args:
      train: what the chief runs. It is given a function that connects to the cluster, to be called
        after the input was found to be good, and returns a `Way`.

    Returns:
      The exit code, one of `tfps.exit_codes`; unless it is 0, after one line about what went wrong.
      A worker of an all-reduce that has lost another ends the process with 75.
    """
    with exit_codes.on_sigterm():
        if FLAGS.strategy != "ps":
            return allreduce.run(train, FLAGS.startup_timeout)
        return _run(train)


def _run(train: Callable[[Connect], None]) -> int:
    cluster = None
    failure, code = None, exit_codes.DONE
    try:
        allreduce.check_flags()
        if os.environ.get("TF_CONFIG"):
            if FLAGS.profile is not None:
                raise tfps.ConfigError(
                    f"--profile={FLAGS.profile} is measured on a cluster of its own on this "
                    "machine, but TF_CONFIG is set; unset TF_CONFIG"
                )
            cluster = tfps.Cluster.from_env()
            if cluster.serves:
                tfps.serve(cluster, cpu_devices=FLAGS.devices_per_worker)
                return exit_codes.DONE

        def connect() -> Way:
            nonlocal cluster
            if cluster is not None and cluster.task_type == "evaluator":
                return Evaluation(cluster)
            if cluster is None:
                profiles = FLAGS.profile is not None  # See `Trainer.profile`.
                cluster = tfps.LocalCluster(
                    1 if profiles else FLAGS.workers,
                    1 if profiles else FLAGS.ps,
                    processes=profiles or FLAGS.cluster == "processes",
                    cpu_devices=FLAGS.devices_per_worker or 1,
                )
            strategy = tfps.ParameterServerStrategy(
                cluster, network.partitioner(), startup_timeout=FLAGS.startup_timeout
            )
            print(strategy.device_table(), flush=True)
            return ParameterServers(strategy)

        train(connect)
        return exit_codes.DONE
    except tfps.Error as e:
        failure, code = str(e), exit_codes.of(e)
    except tf.errors.OpError as e:
        failure, code = errors.summary(e.message), exit_codes.FAILED
    except KeyboardInterrupt:
        failure, code = "interrupted", exit_codes.FAILED
    except SystemExit as e:
        if e.code != exit_codes.TERMINATED:
            failure = f"the {cluster.task_type if cluster else 'chief'} ended with {e.code}"
            raise
        failure, code = "told to end by SIGTERM", exit_codes.TERMINATED
    except BaseException as e:
        failure = f"{type(e).__name__}: {e}"
        raise
    finally:
        _part(cluster, failure, code)
    print(f"error: {failure}", file=sys.stderr, flush=True)
    exit_codes.note(code)
    return code


def main(program: Callable[[list[str]], int]) -> None:
    """Runs a binary's main function with the flags of the command line, and exits.

    A wrong flag is an exit code of its own, 2, so that a launcher does not try again.

    Args:
      program: is given the arguments that are left, and returns the exit code.
    """
    app.run(_with_usage(program), flags_parser=_parsed)


def _with_usage(program: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    def run(argv: list[str]) -> int:
        try:
            return program(argv)
        except app.UsageError as e:
            return _bad_flags(e)

    return run


def _parsed(argv: list[str]) -> list[str]:
    try:
        return FLAGS(argv)
    except flags.Error as e:
        sys.exit(_bad_flags(e))


def _bad_flags(error: Exception) -> int:
    print(f"error: {error}; --help lists the flags", file=sys.stderr, flush=True)
    return exit_codes.FLAGS


def _part(cluster, failure: str | None, code: int) -> None:
    """Lets the servers go: with success, with the reason of the failure, or to the next chief."""
    if cluster is None or cluster.task_type != "chief":
        return
    if failure is None:
        cluster.close()
    elif code == exit_codes.TERMINATED:
        cluster.leave()
    else:
        cluster.close(failure)
