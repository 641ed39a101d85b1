"""What starts the processes of each family: who runs where, and what its environment says."""

import json

from benchmarks.wire.family import WORKER_HOSTS, Family, Start
from benchmarks.wire.sizes import WORKERS


def parameter_servers(server: str, chief: str) -> Start:
    """Starts a chief, which answers, workers and ps, by the names of their modules."""

    def start(family: Family) -> None:
        spec = family.spec("chief", "worker", "ps")
        for job, addresses in reversed(spec.items()):
            for i in range(len(addresses)):
                host = "chief" if job == "chief" else f"{job}{i}"
                module = chief if job == "chief" else server
                family.spawn(module, host, _tf_config(spec, job, i), speaks=job == "chief")

    return start


def alone(module: str, *hosts: str) -> Start:
    """Starts a module on each of the hosts, by default the workers'; they do not communicate."""

    def start(family: Family) -> None:
        for i, host in enumerate(hosts or WORKER_HOSTS):
            family.spawn(module, host, {"RANK": str(i)}, speaks=True)

    return start


def tensorflow_workers(module: str) -> Start:
    """Starts a module as each worker of a TF_CONFIG without ps."""

    def start(family: Family) -> None:
        spec = family.spec("worker")
        for i, host in enumerate(WORKER_HOSTS):
            family.spawn(module, host, _tf_config(spec, "worker", i), speaks=True)

    return start


def torch_workers(module: str) -> Start:
    """Starts a module as each rank of a process group of PyTorch's."""

    def start(family: Family) -> None:
        address, _, port = family.address("worker0").rpartition(":")
        for i, host in enumerate(WORKER_HOSTS):
            place = {
                "MASTER_ADDR": address,
                "MASTER_PORT": port,
                "RANK": str(i),
                "WORLD_SIZE": str(WORKERS),
                "GLOO_SOCKET_IFNAME": family.interface,
            }
            family.spawn(module, host, place, speaks=True)

    return start


_TFPS = parameter_servers("tfps.serve", "benchmarks.wire.tfps_chief")

STARTS: dict[str, Start] = {
    "tfps": _TFPS,
    "traffic": _TFPS,
    "local": _TFPS,
    "alone": alone("benchmarks.wire.alone_worker"),
    "stock": parameter_servers("benchmarks.wire.stock_server", "benchmarks.wire.stock_chief"),
    "mwms": tensorflow_workers("benchmarks.wire.mwms_worker"),
    "ddp": torch_workers("benchmarks.wire.ddp_worker"),
}


def _tf_config(spec: dict, job: str, index: int) -> dict[str, str]:
    config = {"cluster": spec, "task": {"type": job, "index": index}}
    return {"TF_CONFIG": json.dumps(config)}
