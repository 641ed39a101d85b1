"""The devices of a cluster's tasks."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tfps import errors


def worker_device(index: int) -> str:
    """Returns the task of a worker, on whose devices its calls run; see `WorkerDevices`."""
    return f"/job:worker/replica:0/task:{index}"


def ps_device(index: int) -> str:
    """Returns the device of a parameter server, its CPU."""
    return f"/job:ps/replica:0/task:{index}/device:CPU:0"


def own_device(kind: str, index: int | str = 0) -> str:
    """Returns a device of whichever worker runs a graph: the name says no task.

    A worker sees no device of another worker, so the name leads to none. Where the worker has no
    such device, TensorFlow takes another one of the worker's.

    Args:
      kind: `CPU` or `GPU`.
      index: of the device among the worker's devices of this kind.
    """
    return f"/job:worker/device:{kind}:{index}"


class WorkerDevices(NamedTuple):
    """The devices that a worker computes with; see `own_device` for the names.

    Attributes:
      host: where parameters are decoded, and where the worker's summed gradients are encoded.
      computing: the devices over which a batch is split, at least one. What a step computes of the
        whole batch, such as the loss, is computed on the first.
      staged: whether the model names devices of its own for its layers (model parallelism).
    """

    host: str
    computing: tuple[str, ...]
    staged: bool

    @property
    def is_one(self) -> bool:
        """Whether a step runs on one device as a whole."""
        return len(self.computing) == 1 and not self.staged

    @classmethod
    def choose(
        cls, present: Sequence[Sequence[str]], wanted: int | None, named: Iterable[str]
    ) -> "WorkerDevices":
        """Chooses the devices of all workers, which run the same graphs.

        Args:
          present: per worker, its devices: "CPU:0", "GPU:0" and so on.
          wanted: over how many devices a batch is to be split; None for all GPUs that a worker has,
            or its CPU. It is one device if the model names devices of its own.
          named: the devices that the model names.

        Raises:
          ConfigError: no worker has as many devices.
        """
        every = {name for devices in present for name in devices}
        # A model that names nothing but the host's CPU is split like any other.
        staged = bool((set(named) & every) - {"CPU:0"})
        kind = "GPU" if "GPU:0" in every else "CPU"
        most = max(sum(name.startswith(kind) for name in devices) for devices in present)
        default = most if kind == "GPU" and not staged else 1
        count = wanted or default
        if count > most:
            raise errors.ConfigError(
                f"devices_per_worker={count}, but no worker has more than {most} {kind} "
                f"device(s); use at most {most}"
                + (", or LocalCluster(cpu_devices=...) to try it" if kind == "CPU" else "")
            )
        computing = tuple(own_device(kind, i) for i in range(count))
        # A model that is spread over devices may be too large for each of them.
        return cls(own_device("CPU") if staged else computing[0], computing, staged)


def worker_devices(num_workers: int) -> list[list[str]]:
    """Returns what devices each worker has, such as "CPU:0"; the chief asks, once connected."""
    found: list[list[str]] = [[] for _ in range(num_workers)]
    for device in tf.config.list_logical_devices():
        spec = tf.DeviceSpec.from_string(device.name)
        is_one = spec.job == "worker" and spec.device_type in ("CPU", "GPU")
        if is_one and spec.task < num_workers:
            found[spec.task].append(f"{spec.device_type}:{spec.device_index}")
    return found


def table(spec: dict[str, list[str]]) -> str:
    """Returns a table of the cluster's tasks with their addresses and devices.

    Args:
      spec: job -> addresses; see `Cluster`.
    """
    devices: dict[tuple[str, int], list[str]] = {}
    for device in tf.config.list_logical_devices():
        one = tf.DeviceSpec.from_string(device.name)
        if one.device_type in ("CPU", "GPU"):
            job = "chief" if one.job in (None, "localhost") else one.job
            name = f"{one.device_type}:{one.device_index}"
            devices.setdefault((job, one.task or 0), []).append(name)
    lines = [f"{'task':<12}{'address':<24}devices"]
    for job in ("chief", "worker", "ps"):
        for i, address in enumerate(spec.get(job, [])):
            lines.append(f"{f'{job} {i}':<12}{address:<24}{' '.join(devices.get((job, i), []))}")
    return "\n".join(lines)
