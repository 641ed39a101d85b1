"""The systems that are compared."""

from benchmarks.wire import starts
from benchmarks.wire.family import Start
from benchmarks.wire.systems import System

# Family -> what starts its processes.
STARTS: dict[str, Start] = {
    "tfps": starts.parameter_servers("tfps.serve", "benchmarks.allreduce.tfps_chief"),
    "mirrored": starts.alone("benchmarks.allreduce.mirrored", "worker0"),
    "multiworker": starts.tensorflow_workers("benchmarks.allreduce.multiworker"),
    "ddp": starts.torch_workers("benchmarks.allreduce.ddp_worker"),
    "alone": starts.alone("benchmarks.allreduce.alone_worker"),
}

# Family -> the module that it needs.
NEEDS = {**dict.fromkeys(STARTS, "tensorflow"), "ddp": "torch"}

SYNC = "tfps Sync"


def _tfps(name: str, consistency: str, overlap: int = 0) -> System:
    return System(name, "tfps", {"consistency": consistency, "overlap": overlap}, True)


SYSTEMS = (
    _tfps(SYNC, "sync"),
    _tfps("tfps Async", "async"),
    _tfps("tfps Async, overlap 1", "async", overlap=1),
    System("MultiWorkerMirroredStrategy, ring", "multiworker", {}, True),
    System("PyTorch DDP, gloo", "ddp", {}, True),
    System("MirroredStrategy, one process", "mirrored", {}, True),
    System("workers alone", "alone", {}, True),
)

# The families that do the same whatever the links are.
OFF_THE_NETWORK = ("mirrored", "alone")


def of_network(system: System, network: str) -> System:
    """The system, told which of `networks.NETWORKS` to train."""
    return System(
        system.name, system.family, {**system.settings, "network": network}, system.lossless
    )


def synchronous(system: System) -> bool:
    """Whether the system's weights are those of one process on the batches of all workers."""
    return system.settings.get("consistency", "sync") == "sync"
