"""Which tasks there are, where they listen, and which of them this process is."""

import json
import os
import time
from collections.abc import Callable, Mapping

import tensorflow as tf

from tfps import errors, exit_codes
from tfps.cluster import shutdown, sockets, succession

JOBS = ("chief", "worker", "ps", "spare", "evaluator")

# s for which lost parameter servers are waited for before spare ones take their places.
_SPARE_AFTER = 20.0

_EXAMPLE = (
    '{"cluster": {"chief": ["a:2222"], "worker": ["b:2222"], "ps": ["c:2222"]}, '
    '"task": {"type": "chief", "index": 0}}'
)


class Cluster:
    """The tasks of a training job and this process's place among them.

    Attributes:
      spec: dict, job name -> list of `host:port` addresses. Each task has one name and one address
        at a time, and the address of a ps changes if another server takes its place.
      started: dict, the addresses at which processes were started, and as what.
      shared: list of the addresses of servers whose process has taken the part of another ps as
        well, once for each.
      guests: list of the addresses of spare servers that the specification does not name.
      task_type: str, this process's job: `chief`, `worker`, `ps`, `spare` or `evaluator`.
      task_index: int, this process's index in its job.
      connected: bool, whether this process is the chief and has connected.
    """

    connected = False

    def __init__(
        self, spec: Mapping[str, list[str]], task_type: str = "chief", task_index: int = 0
    ):
        """Checks the description.

        Args:
          spec: job name -> `host:port` addresses. There are at least one `ps` and one `worker`. A
            `chief` is needed if tasks are processes of their own.
          task_type: the job of this process.
          task_index: the index of this process in its job.

        Raises:
          ClusterConfigError: names the key, the value and what is expected.
        """
        self.spec = _checked_spec(spec)
        self.started = {job: list(addresses) for job, addresses in self.spec.items()}
        self.shared: list[str] = []
        self.guests: list[str] = []
        self.task_type, self.task_index = _checked_task(self.spec, task_type, task_index)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Cluster":
        """Makes the cluster that the environment variable `TF_CONFIG` describes.

        From then on an uncaught error of tfps ends the process with the code of `tfps.exit_codes`.

        Raises:
          ClusterConfigError: the variable is missing, is not JSON, or describes
            a cluster that cannot work.
        """
        exit_codes.follow()
        text = environ.get("TF_CONFIG", "")
        if not text.strip():
            raise errors.ClusterConfigError(
                f"TF_CONFIG is not set; set it to JSON such as {_EXAMPLE}"
            )
        try:
            config = json.loads(text)
        except json.JSONDecodeError as e:
            raise errors.ClusterConfigError(
                f"TF_CONFIG is not JSON ({e}); expected something like {_EXAMPLE}"
            ) from e
        if not isinstance(config, dict) or not isinstance(config.get("cluster"), dict):
            raise errors.ClusterConfigError(
                f"TF_CONFIG has no object under 'cluster'; expected something like {_EXAMPLE}"
            )
        task = config.get("task")
        if not isinstance(task, dict) or "type" not in task:
            raise errors.ClusterConfigError(
                f"TF_CONFIG has no 'task' with 'type' and 'index' (got {task!r}); each task needs "
                'its own, such as {"type": "worker", "index": 0}'
            )
        if "chief" not in config["cluster"]:
            raise errors.ClusterConfigError(
                "TF_CONFIG 'cluster' names no 'chief'; add one address under 'chief', the task "
                "that runs the training loop"
            )
        return cls(config["cluster"], task["type"], task.get("index", 0))

    @classmethod
    def from_resolver(cls, resolver: tf.distribute.cluster_resolver.ClusterResolver) -> "Cluster":
        """Makes the cluster that a TensorFlow cluster resolver describes, as seen by its chief.

        Args:
          resolver: of any kind. Without a `chief` in it, the chief has no address that other hosts
            know.
        """
        spec = resolver.cluster_spec()
        return cls({job: spec.job_tasks(job) for job in spec.jobs})

    @property
    def num_workers(self) -> int:
        """Number of workers."""
        return len(self.spec["worker"])

    @property
    def num_ps(self) -> int:
        """Number of parameter servers."""
        return len(self.spec["ps"])

    @property
    def serves(self) -> bool:
        """Whether this process's task is a server: a worker, a ps, or a spare server."""
        return self.task_type in ("worker", "ps", "spare")

    @property
    def address(self) -> str:
        """This process's own `host:port`."""
        return self.spec[self.task_type][self.task_index]

    @property
    def servers(self) -> dict[str, str]:
        """Name -> address of every task that serves: `{"worker 0": "host:port", ...}`."""
        return {
            f"{job} {i}": address
            for job in ("worker", "ps")
            for i, address in enumerate(self.spec[job])
        }

    def wait(
        self,
        timeout: float,
        on_wait: Callable[[dict[str, str]], None] = lambda missing: None,
    ) -> None:
        """Waits until every worker and ps answers; see `sockets.wait_for`.

        After 20 s, spare servers that answer take the places of parameter servers that do not: the
        job may have lost these before its chief was started again.
        """
        deadline = time.monotonic() + timeout
        patience = min(timeout / 2, _SPARE_AFTER) if self.started.get("spare") else timeout
        while True:
            try:
                return sockets.wait_for(self.servers, patience, on_wait)
            except errors.StartupTimeout:
                if (left := deadline - time.monotonic()) <= 0:
                    raise
                self._use_spares()
                patience = min(left, _SPARE_AFTER)

    def _use_spares(self) -> None:
        """Gives parameter servers that do not answer the addresses of spare ones that do."""
        spares = [
            address
            for address in self.started["spare"]
            if address not in self.spec["ps"] and sockets.answers(address, timeout=1.0)
        ]
        for ps, address in enumerate(self.spec["ps"]):
            if spares and not sockets.answers(address, timeout=1.0):
                self.move_ps(ps, spares.pop(0))

    def claim(self, timeout: float) -> None:
        """Has servers start anew that hold the memory of another chief; see `succession.claim`.

        A cluster whose chief has no address of its own is started by its chief, or by hand.
        """
        if "chief" in self.spec and not self.connected:
            # What nobody waits for may not be there.
            there = set(self.servers.values())
            servers = [
                (job, index, address)
                for job, index, address in shutdown.servers(self)
                if address in there or sockets.answers(address, timeout=1.0)
            ]
            succession.claim(servers, timeout)

    def move_ps(self, index: int, address: str) -> None:
        """Notes that another server has taken a ps's place; see `replacements`."""
        self.spec["ps"][index] = address

    def close(self, message: str = shutdown.DONE) -> None:
        """Tells the servers that the job is over; the chief calls this when it is done.

        Args:
          message: `DONE`, or why the job failed. The servers exit with 0 after `DONE`, otherwise
            with 75.
        """
        shutdown.send(self, message)

    def leave(self) -> None:
        """Tells the servers that this chief goes because it was told to end, and not the job.

        They start anew, wait for the next chief as after the death of one, and end with 75 if none
        comes. So whoever starts tasks again has one task to start: the chief.
        """
        shutdown.send(self, shutdown.LEAVES)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is SystemExit and value.code == exit_codes.TERMINATED:
            self.leave()
        else:
            self.close(shutdown.DONE if kind is None else f"{kind.__name__}: {value}")

    def resolver(self, chief: str = "chief") -> tf.distribute.cluster_resolver.ClusterResolver:
        """Returns the description in the form that TensorFlow's strategies take.

        Args:
          chief: the name of the chief's job in the description.
        """
        spec = {chief if job == "chief" else job: a for job, a in self._served().items()}
        return tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(spec),
            task_type=self.task_type,
            task_id=self.task_index,
            rpc_layer="grpc",
        )

    def served_spec(self) -> tf.train.ClusterSpec:
        """Returns the tasks that take part in TensorFlow's runtime.

        An evaluator does not, and a spare server only if this process is one.
        """
        return tf.train.ClusterSpec(self._served())

    def _served(self) -> dict[str, list[str]]:
        apart = ("evaluator",) if self.task_type == "spare" else ("evaluator", "spare")
        return {job: a for job, a in self.spec.items() if job not in apart}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_workers} workers, {self.num_ps} ps, "
            f"this is {self.task_type} {self.task_index})"
        )


def _checked_spec(spec: Mapping[str, list[str]]) -> dict[str, list[str]]:
    seen: dict[str, str] = {}
    checked = {}
    for job, addresses in spec.items():
        if job not in JOBS:
            raise errors.ClusterConfigError(
                f"cluster names an unknown job {job!r}; the jobs are {', '.join(JOBS)}"
            )
        if not isinstance(addresses, (list, tuple)) or not all(
            isinstance(a, str) for a in addresses
        ):
            raise errors.ClusterConfigError(
                f"cluster[{job!r}] is {addresses!r}; expected a list of 'host:port' strings"
            )
        for i, address in enumerate(addresses):
            sockets.split(address)
            if address in seen:
                raise errors.ClusterConfigError(
                    f"cluster repeats the address {address!r} ({seen[address]} and {job} {i}); "
                    "each task needs its own"
                )
            seen[address] = f"{job} {i}"
        checked[job] = list(addresses)
    for job in ("worker", "ps"):
        if not checked.get(job):
            raise errors.ClusterConfigError(
                f"cluster names no {job!r}; add at least one address under {job!r}"
            )
    if len(checked.get("chief", ())) > 1:
        raise errors.ClusterConfigError(
            f"cluster names {len(checked['chief'])} chiefs ({checked['chief']}); there is one"
        )
    return checked


def _checked_task(spec: dict[str, list[str]], job: str, index) -> tuple[str, int]:
    if job not in JOBS:
        raise errors.ClusterConfigError(f"task type is {job!r}; expected one of {', '.join(JOBS)}")
    try:
        index = int(index)
    except (TypeError, ValueError):
        raise errors.ClusterConfigError(f"task index is {index!r}; expected an integer") from None
    # The chief of an embedded cluster needs no address, and no evaluator needs one.
    count = len(spec.get(job, ())) or (1 if job in ("chief", "evaluator") else 0)
    if not 0 <= index < count:
        raise errors.ClusterConfigError(
            f"this task is {job} {index}, but the cluster has {count} {job} task(s); the index "
            f"must be below {count}"
        )
    return job, index
