"""One program for every task of a cluster.

Without TF_CONFIG a binary starts a cluster on this machine. With TF_CONFIG the binary is the task
that the variable names.
"""

import os
import sys
from collections.abc import Callable

import tensorflow as tf
from absl import flags

import tfps
from models import network
from tfps import errors

FLAGS = flags.FLAGS

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
    60.0,
    "Seconds that the chief waits for all workers and ps to answer.",
    lower_bound=0.0,
)

Connect = Callable[[], tfps.ParameterServerStrategy]


def run(train: Callable[[Connect], None]) -> int:
    """Runs this process's task: a worker or ps serves until the job ends, the chief trains.

    Args:
      train: what the chief runs. It is given a function that connects to the cluster, to be called
        after the input was found to be good.

    Returns:
      The exit code: 0, or 1 after one line about what went wrong.
    """
    cluster = None
    failure = None
    try:
        if os.environ.get("TF_CONFIG"):
            cluster = tfps.Cluster.from_env()
            if cluster.task_type in ("worker", "ps"):
                tfps.serve(cluster, cpu_devices=FLAGS.devices_per_worker)
                return 0
            if cluster.task_type != "chief":
                raise tfps.ConfigError(
                    f"task type is {cluster.task_type!r}; this program runs as chief, worker or ps"
                )

        def connect():
            nonlocal cluster
            if cluster is None:
                cluster = tfps.LocalCluster(
                    FLAGS.workers,
                    FLAGS.ps,
                    processes=FLAGS.cluster == "processes",
                    cpu_devices=FLAGS.devices_per_worker or 1,
                )
            strategy = tfps.ParameterServerStrategy(
                cluster, network.partitioner(), startup_timeout=FLAGS.startup_timeout
            )
            print(strategy.device_table(), flush=True)
            return strategy

        train(connect)
        return 0
    except tfps.Error as e:
        failure = str(e)
    except tf.errors.OpError as e:
        failure = errors.summary(e.message)
    except KeyboardInterrupt:
        failure = "interrupted"
    except BaseException as e:
        failure = f"{type(e).__name__}: {e}"
        raise
    finally:
        _part(cluster, failure)
    print(f"error: {failure}", file=sys.stderr, flush=True)
    return 1


def _part(cluster, failure: str | None) -> None:
    """Lets the servers go: with success, or with the reason of the failure."""
    if cluster is None or cluster.task_type != "chief":
        return
    if failure is None:
        cluster.close()
    else:
        cluster.close(failure)
