"""The workers of an all-reduce, as TF_CONFIG describes them: a cluster without ps."""

import json
import os
import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tfps import ClusterConfigError, errors

_EXAMPLE = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'

_LONGEST = 120  # characters of TensorFlow's reason in a line


class Workers(NamedTuple):
    """All processes of an all-reduce, and which of them this process is.

    Attributes:
      spec: `worker` -> addresses, and `chief` -> one address if there is a chief, which is a worker
        that also saves and prints.
      job: this process's job.
      index: this process's index in its job.
    """

    spec: dict[str, list[str]]
    job: str
    index: int

    @property
    def chief(self) -> bool:
        """Whether this process saves and prints: the chief, or worker 0 if there is no chief."""
        return self.job == "chief" or ("chief" not in self.spec and self.index == 0)

    @property
    def others(self) -> dict[str, str]:
        """Name -> address of every other process."""
        spec = sorted(self.spec.items())  # The chief first.
        named = {f"{job} {i}": a for job, all_ in spec for i, a in enumerate(all_)}
        del named[f"{self.job} {self.index}"]
        return named

    def silent(self, timeout: float = 1.0) -> str:
        """Names the other processes that accept no connection within `timeout` s each; or ""."""
        silent = [f"{n} at {a}" for n, a in self.others.items() if not _answers(a, timeout)]
        return ", ".join(silent)

    def lost(self, message: str) -> str:
        """Says who was lost, from TensorFlow's message and from who answers now."""
        addresses = self.others
        named = re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", message)
        names = [name for name in (f"{job} {i}" for job, i in named) if name in addresses]
        if not names and "Heartbeat" in message:
            names = list(addresses)[:1]  # The heartbeats go to the first task.
        who = ", ".join(f"{name} at {addresses[name]}" for name in dict.fromkeys(names))
        reason = errors.summary(message).removeprefix("Collective ops is aborted by: ")
        return f"lost {self.silent() or who or 'a worker'} (TensorFlow: {reason[:_LONGEST]})"

    def resolver(self) -> tf.distribute.cluster_resolver.ClusterResolver:
        """Returns the description in the form that TensorFlow's strategies take."""
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def from_env(environ: Mapping[str, str] = os.environ) -> Workers:
    """Reads TF_CONFIG.

    Raises:
      ClusterConfigError: names the value, what is expected and the remedy.
    """
    text = environ.get("TF_CONFIG", "")
    if not text.strip():
        raise ClusterConfigError(
            "--strategy=multiworker needs TF_CONFIG, which is not set; set it for each process, "
            f"such as {_EXAMPLE}, or use --strategy=mirrored in one process"
        )
    try:
        config = json.loads(text)
        spec, task = dict(config["cluster"]), config["task"]
        job, index = task["type"], int(task.get("index", 0))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ClusterConfigError(
            f"TF_CONFIG is not as expected ({type(e).__name__}: {e}); an example is {_EXAMPLE}"
        ) from e
    spec.pop("evaluator", None)
    _check(spec, job, index)
    return Workers(spec, job, index)


def _check(spec: dict, job: str, index: int) -> None:
    if spec.get("ps"):
        raise ClusterConfigError(
            f"TF_CONFIG names the ps {spec['ps']}, but an all-reduce has none; take 'ps' out, or "
            "use --strategy=ps"
        )
    spec.pop("ps", None)
    if unknown := spec.keys() - {"chief", "worker"}:
        raise ClusterConfigError(
            f"TF_CONFIG names the job {unknown.pop()!r}; the jobs of an all-reduce are chief and "
            "worker"
        )
    addresses = [a for listed in spec.values() for a in listed]
    for address in addresses:
        if not isinstance(address, str) or not address.rpartition(":")[2].isdigit():
            raise ClusterConfigError(f"TF_CONFIG has the address {address!r}; expected host:port")
    if len(set(addresses)) < len(addresses):
        raise ClusterConfigError(f"TF_CONFIG repeats an address in {addresses}; make them differ")
    if not 0 <= index < len(spec.get(job, ())):
        raise ClusterConfigError(
            f"this task is {job} {index}, but TF_CONFIG has {len(spec.get(job, ()))} of {job}; the "
            "index must be below that"
        )


def _answers(address: str, timeout: float) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    except OSError:
        return False
    return True
