"""A worker or parameter server: TensorFlow's own gRPC server, which lives as long as the job.

`python -m tfps.serve` serves the task that TF_CONFIG describes.
"""

import os
import sys
from collections.abc import Callable

import tensorflow as tf

from tfps import _tf, errors, exit_codes
from tfps.cluster import anew, chief_watch, environment, failures, shutdown, sockets
from tfps.cluster.spec import Cluster

_STARTUP_TIMEOUT = 3600.0  # s; tasks may be started in any order, by hand, on many machines


# s that a worker that is told to end waits for the chief to let it go.
_HANDS_BACK = 4.0

# Servers in one process share the pool that the first of them makes, so it is made for many.
_EMBEDDED_THREADS = 128

# The addresses at which this process serves.
_here: set[str] = set()

# The servers of other ps that this process has started.
_others: list[tf.distribute.Server] = []

# How many threads the pool of this process has; None until a server is started here.
_pool: int | None = None


def inter_op_threads(num_workers: int) -> int:
    """Returns how many inter-op threads a server needs.

    A server blocks a thread of its pool for each function of another task that waits inside it.
    With TensorFlow's default, the number of cores, two workers and two ps on a machine with two
    cores wait for one another for ever.
    """
    return max(16, 8 * num_workers)


def can_embed(num_workers: int) -> bool:
    """Whether all servers of a cluster can be threads of this process without blocking each other.

    The first server of a process makes the pool of threads for all later ones, and TensorFlow
    cannot enlarge it. By connecting to a cluster, a chief makes a server as well, with TensorFlow's
    default.
    """
    wanted = inter_op_threads(num_workers)
    return _pool_threads(wanted) >= wanted


def _pool_threads(wanted: int) -> int:
    """How many threads the pool has; if no server was made yet, as many as are wanted."""
    if _pool is not None or not _tf.is_connected():
        return _pool or wanted
    return tf.config.threading.get_inter_op_parallelism_threads() or os.cpu_count() or 1


def start(
    cluster: Cluster, job: str, index: int, cpu_devices: int = 1, embedded: bool = False
) -> tf.distribute.Server:
    """Starts the gRPC server of one task in this process.

    The server listens on every interface without credentials, as TensorFlow's servers do. Whoever
    reaches the port can run code in this process.

    Args:
      cluster: the cluster of the task.
      job: `worker`, `ps` or `spare`.
      index: the task's index in its job.
      cpu_devices: how many devices of the CPU a worker has, all of the same processor. A worker
        also has all GPUs that its process sees; a ps has none.
      embedded: whether other servers are in this process as well.

    Raises:
      PortInUse: something listens on the task's port already.
    """
    global _pool
    sockets.require_free(cluster.spec[job][index], f"{job} {index}")
    environment.configure_channels()
    if job != "worker":
        environment.configure_xla()
    threads = max(inter_op_threads(cluster.num_workers), _EMBEDDED_THREADS if embedded else 0)
    if job != "worker":
        threads *= 2  # It may have to serve another ps's part as well.
    _pool = _pool_threads(threads)
    config = tf.compat.v1.ConfigProto(
        inter_op_parallelism_threads=threads,
        device_count={"CPU": cpu_devices} if job == "worker" else {"GPU": 0},
    )
    _here.add(cluster.spec[job][index])
    # Otherwise the first process on a GPU takes all of its memory.
    config.gpu_options.allow_growth = True
    return tf.distribute.Server(
        cluster.served_spec(), job_name=job, task_index=index, protocol="grpc", config=config
    )


def start_another(cluster: Cluster, ps: int) -> str:
    """Starts the server of another ps in this process, a ps, and returns its address.

    Args:
      cluster: of this process's task.
      ps: index of the ps that is lost.

    Returns:
      The `host:port` of the new server, on a port that was free; "" if none could be started.
    """
    own, _ = sockets.split(cluster.address)
    (port,) = sockets.free_ports(1)
    address = f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
    try:
        another = tf.distribute.Server(
            tf.train.ClusterSpec({"ps": {ps: address}}),
            job_name="ps",
            task_index=ps,
            protocol="grpc",
            config=tf.compat.v1.ConfigProto(device_count={"GPU": 0}),
        )
    except Exception:  # Whoever asks is told in any case.
        return ""
    _others.append(another)
    return address


def is_here(address: str) -> bool:
    """Whether this process serves at an address."""
    return address in _here


def serve(
    cluster: Cluster,
    startup_timeout: float = _STARTUP_TIMEOUT,
    orphaned: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = lambda line: failures.say(line, ""),
    cpu_devices: int | None = None,
    chief_timeout: float | None = None,
    ps_timeout: float = chief_watch.PS_TIMEOUT,
) -> None:
    """Serves this process's task until the chief says that the job is done.

    A chief that starts again cannot use what is in a server's memory. So when the chief died
    without a word, or was told to end, the process starts anew in its place: the program of this
    process is executed again, with the same command line, process id and port. It then waits for
    the next chief. A worker that has not seen its chief for 15 s, because its host was cut off or
    the process was frozen, starts anew as well, for the chief goes on without it by then; a
    parameter server keeps its memory for longer. A process of `multiprocessing` cannot start
    anew, and ends instead.

    Args:
      cluster: a cluster whose `task_type` is `worker`, `ps` or `spare`.
      startup_timeout: seconds that the first chief may take to appear.
      orphaned: returns whether the process that started this one is gone.
      report: called with lines about what the server waits for.
      cpu_devices: how many devices of the CPU a worker has, to try what is for GPUs; None for what
        the environment variable TFPS_CPU_DEVICES says, or 1.
      chief_timeout: seconds that the next chief may take to appear after the loss of one; None for
        what the environment variable TFPS_CHIEF_TIMEOUT says, or 300.
      ps_timeout: seconds without its chief for which a parameter server keeps its memory.

    Raises:
      ClusterConfigError: TFPS_CPU_DEVICES or TFPS_CHIEF_TIMEOUT is no such number.
      PortInUse: the task's port is taken.
      StartupTimeout: the chief did not appear.
      ChiefLost: the chief reported that the job failed, or it died and this process cannot start
        anew.
      SystemExit: SIGTERM came, and the program has no handler for it; the code is 143.
    """
    name = f"{cluster.task_type} {cluster.task_index}"
    next_timeout = environment.chief_timeout() if chief_timeout is None else chief_timeout
    wait = next_timeout if anew.was_started() else startup_timeout
    lease = chief_watch.LEASE if cluster.task_type == "worker" else ps_timeout
    try:
        with exit_codes.sigterm_noted() as told:
            why = _served(cluster, wait, lease, orphaned, told, report, cpu_devices)
        if why is None:
            return
        if told():  # Perhaps with the chief. The next program would not know.
            exit_codes.terminate()
        if not anew.is_possible():
            raise errors.ChiefLost(f"{why}; start the job again") from why
        report(f"{name}: {why}; this server starts anew, and waits {next_timeout:g} s")
        anew.start()
    except SystemExit:
        report(f"{name}: told to end by SIGTERM")
        raise


def _served(
    cluster: Cluster,
    startup_timeout: float,
    lease: float,
    orphaned: Callable[[], bool],
    told: Callable[[], bool],
    report: Callable[[str], None],
    cpu_devices: int | None,
) -> anew.Anew | None:
    """Serves; returns why the process is to start anew, or None if the job is done."""
    try:
        _serve(cluster, startup_timeout, lease, orphaned, told, report, cpu_devices)
    except anew.Anew as why:
        return why
    return None


def _serve(
    cluster: Cluster,
    startup_timeout: float,
    lease: float,
    orphaned: Callable[[], bool],
    told: Callable[[], bool],
    report: Callable[[str], None],
    cpu_devices: int | None,
) -> None:
    name = f"{cluster.task_type} {cluster.task_index}"
    is_ps = cluster.task_type in ("ps", "spare")
    if is_ps:
        environment.hide_gpus()
    count = environment.cpu_devices() if cpu_devices is None else cpu_devices
    server = start(cluster, cluster.task_type, cluster.task_index, count)
    report(f"{name} serves at {cluster.address}")
    receiver = shutdown.Receiver(
        server, cluster, lease, lambda ps: start_another(cluster, ps) if is_ps else ""
    )
    message = receiver.wait(startup_timeout, orphaned, lambda line: report(f"{name}: {line}"), told)
    if message is None:
        if cluster.task_type == "worker" and receiver.hand_back(_HANDS_BACK):
            report(f"{name}: has handed back what it held")
        exit_codes.terminate()
    if message != shutdown.DONE:
        raise errors.ChiefLost(f"the job failed: {message}")
    report(f"{name}: the job is done")


def main() -> None:
    """Serves TF_CONFIG's task; the exit code is one of `tfps.exit_codes`."""
    parent = os.environ.get("TFPS_PARENT")
    orphaned = (lambda: os.getppid() != int(parent)) if parent else (lambda: False)
    try:
        cluster = Cluster.from_env()
        if not cluster.serves:
            raise errors.ClusterConfigError(
                f"task type is {cluster.task_type!r}; tfps.serve runs a worker, a ps or a spare"
            )
        serve(cluster, orphaned=orphaned)
        code = exit_codes.DONE
    except SystemExit as e:
        code = int(e.code or 0)
    except errors.Error as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        code = exit_codes.of(e)
    # TensorFlow's server threads would keep the interpreter from ending.
    os._exit(code)
