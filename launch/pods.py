"""The pods of a job on Kubernetes: one container each, which is one task of the cluster."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from launch import topology
from launch.topology import Role, Task, Topology

Manifest = dict[str, Any]

CONTAINER = "task"
USER = 1000  # The user and group of the image's processes; the numbers need not be in its passwd.
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of Kubernetes.

    Attributes:
      name: the job's name, which the names of all of its objects begin with.
      roles: the tasks and what each needs.
      image: the container image.
      command: the program and its arguments. It is started without a shell.
      namespace: the namespace, or an empty string for the one of kubectl's context.
      port: the port on which each task listens. Every pod has an address of its own.
      grace: seconds from SIGTERM to SIGKILL when a pod is ended.
      volume: name of a PersistentVolumeClaim for what the job writes; empty for an empty folder in
        each pod, which is deleted with the pod.
      folder: where the volume is mounted; every task's working folder.
      environ: variables that every task gets.
      secrets: names of Secrets, whose entries every task gets as variables.
      pull_secrets: names of Secrets with which the image is pulled.
      node_selectors: role -> labels of the nodes on which its pods may run.
      restarts: role -> how often each task of the role is started again.
      job_restarts: how often the job as a whole begins again.
      keep: seconds for which a job that has ended is kept, with its logs.
      settle: seconds that servers have to end by themselves when the job is done.
      jobset: whether the job is a JobSet instead of a Job for each role.
    """

    name: str
    roles: tuple[Role, ...]
    image: str
    command: tuple[str, ...]
    namespace: str = ""
    port: int = 2222
    grace: int = 30
    volume: str = ""
    folder: str = "/job"
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    pull_secrets: tuple[str, ...] = ()
    node_selectors: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    restarts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    job_restarts: int = 0
    keep: int = 3600
    settle: float = 5.0
    jobset: bool = False

    @property
    def leader(self) -> str:
        """The role with whose success the job is done."""
        names = [role.name for role in self.roles]
        return topology.CHIEF if topology.CHIEF in names else topology.WORKER

    @property
    def awaited(self) -> list[str]:
        """The roles that have ended when the job is over."""
        names = [role.name for role in self.roles]
        return [self.leader, *(name for name in names if name == topology.EVALUATOR)]

    def host(self, role: str, index: int) -> str:
        """Returns the host name of a task's pod; it is the same after a restart."""
        # A JobSet may have several Jobs for each role, and counts them.
        return f"{self.name}-{role}-{'0-' if self.jobset else ''}{index}"

    @property
    def topology(self) -> Topology:
        """All tasks with their addresses, which hold within the namespace."""
        return Topology(
            tuple(
                Task(role.name, i, self.host(role.name, i), self.address(role.name, i), self.port)
                for role in self.roles
                for i in range(role.count)
            )
        )

    def address(self, role: str, index: int) -> str:
        """Returns a pod's name in the cluster's DNS: its host name below the headless service."""
        return f"{self.host(role, index)}.{self.name}"


def labels(job: Job, role: str | None = None) -> dict[str, str]:
    """Returns the labels by which the job's objects, or those of a role, are found."""
    found = {
        "app.kubernetes.io/instance": job.name,
        "app.kubernetes.io/managed-by": "tfps-launch",
    }
    return found | ({"app.kubernetes.io/component": role} if role else {})


def template(job: Job, role: Role) -> Manifest:
    """Returns the pod template of a role."""
    spec: Manifest = {
        "restartPolicy": "Never",  # The Job makes a new pod, and counts.
        "subdomain": job.name,
        "terminationGracePeriodSeconds": job.grace,
        # The program is then not process 1, for which the kernel ignores a SIGTERM that the
        # program does not handle; and what the program leaves behind is reaped.
        "shareProcessNamespace": True,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _pod_security(),
        "containers": [_container(job, role)],
        "volumes": _volumes(job),
    }
    if job.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in job.pull_secrets]
    if job.node_selectors.get(role.name):
        spec["nodeSelector"] = dict(job.node_selectors[role.name])
    spec["tolerations"] = [_tolerates_for_a_while(what) for what in ("not-ready", "unreachable")]
    if role.gpus:
        spec["tolerations"].append(
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        )
    if role.name in (topology.PS, topology.SPARE) and role.count > 1:
        spec["topologySpreadConstraints"] = [_spread(job, role)]
    return {"metadata": {"labels": labels(job, role.name)}, "spec": spec}


def _tolerates_for_a_while(state: str) -> Manifest:
    """How long a pod stays on a node that is lost; by default it is 5 minutes."""
    return {
        "key": f"node.kubernetes.io/{state}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 30,
    }


def _container(job: Job, role: Role) -> Manifest:
    found: Manifest = {
        "name": CONTAINER,
        "image": job.image,
        "command": [_literal(word) for word in job.command],
        "workingDir": job.folder,
        "env": _environment(job, role),
        "ports": [{"name": "grpc", "containerPort": job.port}],
        "resources": _resources(role),
        "securityContext": _container_security(),
        "volumeMounts": [
            {"name": "job", "mountPath": job.folder},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    if job.secrets:
        found["envFrom"] = [{"secretRef": {"name": name}} for name in job.secrets]
    if role.name not in (job.leader, topology.EVALUATOR):
        found["readinessProbe"] = _probe(job)
    return found


def _environment(job: Job, role: Role) -> list[Manifest]:
    """TF_CONFIG, with the pod's index put in by Kubernetes; and what the user has asked for."""
    task = json.dumps({"type": role.name, "index": 0}).replace("0}", "$(TASK_INDEX)}")
    cluster = json.dumps(job.topology.cluster)
    found: list[Manifest] = [
        {"name": "TASK_INDEX", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}},
        {"name": "TF_CONFIG", "value": f'{{"cluster": {cluster}, "task": {task}}}'},
        {"name": "HOME", "value": "/tmp"},  # The image's own cannot be written.
        # Others may wait for a node or their image, which the command that follows tells of.
        {"name": "TFPS_STARTUP_TIMEOUT", "value": "3600"},
    ]
    if not role.gpus:
        # Images with CUDA ask for all devices, and get them on nodes where that is the default.
        found += [
            {"name": "CUDA_VISIBLE_DEVICES", "value": ""},
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
        ]
    asked = {name: {"name": name, "value": _literal(v)} for name, v in job.environ.items()}
    return [e for e in found if e["name"] not in asked] + list(asked.values())


def _literal(text: str) -> str:
    """Text that Kubernetes leaves as it is: `$(NAME)` would be replaced, and `$$` is a dollar."""
    return text.replace("$", "$$")


def _probe(job: Job) -> Manifest:
    """A server is ready when its port accepts a connection; there is nothing more that it answers.

    TensorFlow's servers do not have gRPC's health service. A frozen process still accepts, and one
    that is gone has ended its container: a liveness probe could only kill what works.
    """
    return {"tcpSocket": {"port": job.port}, "periodSeconds": 5, "timeoutSeconds": 3}


def _resources(role: Role) -> Manifest:
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if role.cores:
        requests["cpu"] = str(role.cores)  # Without a limit: idle cores may be used.
    if role.memory:
        requests["memory"] = limits["memory"] = str(role.memory)
    if role.gpus:
        limits["nvidia.com/gpu"] = str(role.gpus)
    sides = {"requests": requests, "limits": limits}
    return {name: side for name, side in sides.items() if side}


def _pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _volumes(job: Job) -> list[Manifest]:
    claim: Manifest = (
        {"persistentVolumeClaim": {"claimName": job.volume}} if job.volume else {"emptyDir": {}}
    )
    return [{"name": "job"} | claim, {"name": "tmp", "emptyDir": {}}]


def _spread(job: Job, role: Role) -> Manifest:
    """Parameter servers share the traffic, so each should have a network card of its own."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels(job, role.name)},
    }
