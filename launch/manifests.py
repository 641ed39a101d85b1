"""The objects of a job on Kubernetes, as data: what `kubectl create -f` takes.

Every role is an Indexed Job. A StatefulSet would start a server again that has ended because the
job is done, and one that has ended with the user's own error; a Job knows exit codes
(`podFailurePolicy`), counts restarts for each task, gives each pod a name that stays, and ends.
"""

import re

from launch import errors, exit_codes, pods, topology
from launch.pods import Job, Manifest
from launch.topology import Role

_NAME_LIMIT = 63  # Characters of a DNS label.
_SUFFIX = 6  # Characters that Kubernetes adds to a pod's name.

# The reasons for which Kubernetes marks a Job as failed whose pod ended with the user's own error.
_OWN_ERROR = "PodFailurePolicy"


def of_job(job: Job) -> list[Manifest]:
    """Returns all objects of a job; the last is the one with whose success the job is done.

    Raises:
      FlagError: a name is none that DNS takes, or GPUs are asked for without a number.
    """
    require_names(job)
    common = [_network_policy(job), *(_disruption_budget(job, role) for role in job.roles)]
    if job.jobset:
        return [*common, _jobset(job)]  # It makes the headless service itself.
    followers = [role for role in job.roles if role.name != job.leader]
    leaders = [role for role in job.roles if role.name == job.leader]
    return [_service(job), *common, *(_job(job, role) for role in [*followers, *leaders])]


def require_names(job: Job) -> None:
    """Checks that the names of all objects, pods and hosts are labels of the DNS.

    Raises:
      FlagError: the name has other characters, or is too long.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job.name):
        raise errors.FlagError(
            f"--name={job.name} is no DNS label; write small letters, digits and dashes, as gpt-1"
        )
    longest = max(len(job.host(r.name, r.count - 1)) for r in job.roles) + _SUFFIX
    if longest > _NAME_LIMIT:
        raise errors.FlagError(
            f"--name={job.name} makes pod names of {longest} characters, and Kubernetes allows "
            f"{_NAME_LIMIT}; shorten it by {longest - _NAME_LIMIT}"
        )


def _role_metadata(job: Job, role: Role) -> Manifest:
    return _metadata(job, f"{job.name}-{role.name}", role.name)


def _metadata(job: Job, name: str, role: str | None = None) -> Manifest:
    found: Manifest = {"name": name, "labels": pods.labels(job, role)}
    return found | ({"namespace": job.namespace} if job.namespace else {})


def _object(kind: str, version: str, metadata: Manifest, spec: Manifest) -> Manifest:
    """An object of the API; `version` is its `apiVersion`."""
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _service(job: Job) -> Manifest:
    """The headless service, below which every pod has a name."""
    spec: Manifest = {
        "clusterIP": "None",
        # Servers look for one another before any of them is ready.
        "publishNotReadyAddresses": True,
        "selector": pods.labels(job),
        "ports": [{"name": "grpc", "port": job.port}],
    }
    return _object("Service", "v1", _metadata(job, job.name), spec)


def _network_policy(job: Job) -> Manifest:
    """Whoever reaches a TensorFlow server can run code in it: only the job's own pods may."""
    own = {"matchLabels": pods.labels(job)}
    spec: Manifest = {
        "podSelector": own,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": own}]}],
    }
    return _object("NetworkPolicy", "networking.k8s.io/v1", _metadata(job, job.name), spec)


def _disruption_budget(job: Job, role: Role) -> Manifest:
    """Draining a node may take one worker at a time, or an evaluator or spare, but no other task.

    `minAvailable` as a number is the one form that is allowed for pods of Jobs.
    """
    may_go = (topology.WORKER, topology.SPARE, topology.EVALUATOR)
    spare = 1 if role.name in may_go and role.name != job.leader else 0
    spec = {
        "minAvailable": role.count - spare,
        "selector": {"matchLabels": pods.labels(job, role.name)},
    }
    return _object("PodDisruptionBudget", "policy/v1", _role_metadata(job, role), spec)


def _job(job: Job, role: Role) -> Manifest:
    spec = _job_spec(job, role) | {"ttlSecondsAfterFinished": job.keep}
    return _object("Job", "batch/v1", _role_metadata(job, role), spec)


def _job_spec(job: Job, role: Role) -> Manifest:
    return {
        "completionMode": "Indexed",
        "completions": role.count,
        "parallelism": role.count,
        "backoffLimitPerIndex": _restarts(job, role),
        "maxFailedIndexes": 0,  # A task that cannot be started again ends the others.
        "podFailurePolicy": {"rules": _failure_rules(job, role)},
        "podReplacementPolicy": "Failed",  # Never two pods of one name.
        "template": pods.template(job, role),
    }


def _restarts(job: Job, role: Role) -> int:
    """How often each task of a role is started again."""
    # Without a JobSet, a job begins again when its chief does.
    again = job.job_restarts if role.name == job.leader and not job.jobset else 0
    return job.restarts.get(role.name, 0) + again


def _failure_rules(job: Job, role: Role) -> list[Manifest]:
    """What a pod's end means; the first rule that fits is taken, and what fits none is counted."""
    rules: list[Manifest] = []
    if _restarts(job, role):
        # Kubernetes itself took the pod, by its node's end, for instance. This does not count, and
        # says more than the exit code of a program that was told to end.
        disrupted = [{"type": "DisruptionTarget", "status": "True"}]
        rules.append({"action": "Ignore", "onPodConditions": disrupted})
    again = [code for code in range(1, 256) if exit_codes.may_be_retried(code)]
    rules.append(_exit_rule("FailJob", "NotIn", again))
    # The chief says that the job cannot go on: all tasks end. A JobSet then may begin again.
    if role.name == topology.CHIEF and (job.jobset or not job.job_restarts):
        rules.append(_exit_rule("FailIndex", "In", [exit_codes.LOST]))
    return rules


def _exit_rule(action: str, operator: str, codes: list[int]) -> Manifest:
    on = {"containerName": pods.CONTAINER, "operator": operator, "values": codes}
    return {"action": action, "onExitCodes": on}


def _jobset(job: Job) -> Manifest:
    """One object for the whole job, whose controller ends all roles together."""
    own_error = {
        "name": "ownError",
        "action": "FailJobSet",
        "onJobFailureReasons": [_OWN_ERROR],
    }
    spec = {
        "network": {
            "enableDNSHostnames": True,
            "subdomain": job.name,
            "publishNotReadyAddresses": True,
        },
        "successPolicy": {"operator": "All", "targetReplicatedJobs": job.awaited},
        "failurePolicy": {"maxRestarts": job.job_restarts, "rules": [own_error]},
        "ttlSecondsAfterFinished": job.keep,
        "replicatedJobs": [
            {"name": role.name, "replicas": 1, "template": {"spec": _job_spec(job, role)}}
            for role in job.roles
        ],
    }
    return _object("JobSet", "jobset.x-k8s.io/v1alpha2", _metadata(job, job.name), spec)
