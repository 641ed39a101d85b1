"""A job on Kubernetes from its creation to its end, as seen from outside.

Kubernetes itself starts tasks again, so there is no `Launcher` here: what runs on does so without
the process that watches, and ends without it.
"""

import contextlib
import copy
import dataclasses
import itertools
import threading
import time
from collections.abc import Mapping

from launch import errors, exit_codes, kubectl, manifests, pods, topology
from launch.kubectl import Kubectl
from launch.launcher import Line
from launch.output import Output
from launch.pods import Job, Manifest

_EVERY = 2.0  # s between two looks
_PATIENCE = 300.0  # s for which the cluster may not answer
_LAST_WORDS = 10.0  # s that remain for logs when the job has ended
_SLACK = 5.0  # s for which the end of a pod may come to light after its grace
_REMINDER = 30.0  # s after which is told again what a pod waits for
_FINISHED = ("Complete", "Completed", "Failed")
_JOB = "job.batch"
_OWNED = ("service", "networkpolicy", "poddisruptionbudget")


def create(job: Job, cluster: Kubectl) -> None:
    """Creates a job's objects.

    The leader's Job (or the JobSet) comes first and suspended, the others belong to it, and then
    it begins. Whatever happens to this process, Kubernetes deletes all objects with the owner,
    which it deletes `job.keep` seconds after its end. No pod is there before the network policy.

    Raises:
      LaunchError: the cluster refuses. What was created is deleted.
    """
    *others, owner = copy.deepcopy(manifests.of_job(job))
    owner["spec"]["suspend"] = True
    made = cluster.create([owner])[0]
    try:
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": made["metadata"]["name"],
            "uid": made["metadata"]["uid"],
        }
        for manifest in others:
            manifest["metadata"]["ownerReferences"] = [reference]
        cluster.create(others)
        cluster.suspend(owner, False)
    except errors.LaunchError:
        # What was created goes with its owner. Other objects may be of a job of the same name.
        cluster.delete([kubectl.kind(owner)], [made["metadata"]["name"]])
        raise


def _end_chief(cluster: Kubectl) -> None:
    """Ends a job's chief, and waits for it: a last snapshot needs the servers."""
    for job in cluster.get("jobs"):
        if _role(job) != topology.CHIEF or kubectl.condition(job, *_FINISHED):
            continue
        cluster.suspend(job)
        grace = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        deadline = time.monotonic() + grace + _SLACK
        while time.monotonic() < deadline:
            chiefs = [pod for pod in cluster.get("pods") if _role(pod) == topology.CHIEF]
            if not any("running" in _state(pod) for pod in chiefs):
                return
            time.sleep(1.0)


def stop(jobset: bool, cluster: Kubectl) -> list[str]:
    """Deletes all of a job's objects. Its tasks get SIGTERM, and SIGKILL after their grace.

    A chief ends first. (In a JobSet all tasks end together.)

    Args:
      jobset: whether the cluster knows JobSets, which are then deleted too.
      cluster: where.

    Returns:
      The names of what was deleted.
    """
    with contextlib.suppress(errors.SpecificationError):  # What may not be changed may be deleted.
        _end_chief(cluster)
    owners = [_JOB, *(["jobset.jobset.x-k8s.io"] if jobset else [])]
    return cluster.delete([*reversed(owners), *_OWNED])


@dataclasses.dataclass(frozen=True)
class _Failure:
    """A pod's bad end."""

    task: str
    pod: str
    node: str
    code: int
    when: str  # As Kubernetes writes it, so that texts compare as times do.

    def __str__(self) -> str:
        return f"{self.task} ({self.pod} on {self.node}) {exit_codes.described(self.code)}"


class Watch:
    """Follows a job's tasks: their output, their ends, and the job's own."""

    def __init__(self, job: Job, cluster: Kubectl, output: Output):
        """Does not look yet.

        Args:
          job: the job.
          cluster: where it is.
          output: what the user sees.
        """
        self._job, self._cluster, self._output = job, cluster, output
        self._lock = threading.Lock()  # For the output: each pod has a thread.
        self._over = threading.Event()
        self._followed: dict[str, threading.Thread] = {}
        self._ended: set[str] = set()
        self._reminded: dict[str, tuple[str, float]] = {}  # Pod -> what was told of it, and when.
        self._failures: list[_Failure] = []
        self._succeeded: float | None = None  # When the leader was first seen to have succeeded.
        self._are_left = False  # Whether the cluster refuses to delete servers.

    def until_done(self, every: float = _EVERY) -> int:
        """Waits until the job has ended.

        Args:
          every: seconds between two looks.

        Returns:
          The job's exit code: 0, or that of the task that failed first.

        Raises:
          HostError: the cluster has not answered for 5 minutes, or refuses to tell for so long.
          LaunchError: the cluster refuses from the beginning.
        """
        answered, has_told = time.monotonic(), False
        while True:
            try:
                finished = self._look()
                answered, has_told = time.monotonic(), True
            except errors.LaunchError as e:
                # A server that has answered before, and now says something odd, has a bad moment.
                if not has_told and not isinstance(e, errors.HostError):
                    raise
                if time.monotonic() - answered > _PATIENCE:
                    raise errors.HostError(
                        f"the cluster has not answered for {_PATIENCE:g} s ({e}); the job may go on"
                    ) from e
                finished = None
            if finished is not None:
                break
            time.sleep(every)
        self._over.set()
        deadline = time.monotonic() + _LAST_WORDS
        for thread in self._followed.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        return exit_codes.DONE if finished else self._explained()

    def _explained(self) -> int:
        """Says who failed first, with the last lines; returns the exit code."""
        # To lose a peer follows from another's failure.
        own = [f for f in self._failures if f.code != exit_codes.LOST]
        first = min(own or self._failures, key=lambda f: f.when, default=None)
        if first is None:
            self._output.say("the job has failed or was deleted, but no task has", bad=True)
            return exit_codes.FAILED
        lines = "its last lines:" if self._output.has_said(first.task) else "it wrote nothing"
        self._output.say(f"{first}; the job ends with exit code {first.code}; {lines}", bad=True)
        self._output.show_last(first.task)
        return first.code

    def _look(self) -> bool | None:
        """Looks once; returns whether the job has succeeded, or None while it goes on."""
        owners = self._cluster.get("jobset.jobset.x-k8s.io" if self._job.jobset else "jobs")
        for pod in self._cluster.get("pods"):
            self._follow(pod)
            self._note_waiting(pod)
            self._note_end(pod)
        if not owners:
            return False  # Somebody has deleted it.
        found = {_role(o): kubectl.condition(o, *_FINISHED) for o in owners}
        if self._job.jobset:
            ended = found.get(None)
            return None if ended is None else ended["type"] != "Failed"
        leader = found.get(self._job.leader)
        if leader and leader["type"] != "Failed":
            are_over = all(found.get(role) for role in self._job.awaited)
            return True if self._servers_have_ended(owners) and are_over else None
        # A job does without an evaluator or a spare server that fails.
        spared = (topology.EVALUATOR, topology.SPARE)
        needed = [c for role, c in found.items() if role not in spared]
        return False if any(c and c["type"] == "Failed" for c in needed) else None

    def _servers_have_ended(self, jobs: list[Manifest]) -> bool:
        """Whether all servers have ended after the leader's success; ends those that have not.

        The leader has told them that the job is done. A pod that was lost at that moment has been
        made again, and would wait for a chief that does not come. The Jobs that have ended are
        left alone, because their pods have the logs.
        """
        left = [
            job["metadata"]["name"]
            for job in jobs
            if _role(job) not in self._job.awaited and not kubectl.condition(job, *_FINISHED)
        ]
        now = time.monotonic()
        self._succeeded = now if self._succeeded is None else self._succeeded
        if not left or self._are_left:
            return True
        if now - self._succeeded < self._job.settle:
            return False
        try:
            self._cluster.delete([_JOB], left)
            why = f"{' and '.join(left)}: deleted, because some pods have not ended with the job"
        except errors.HostError:
            raise  # The cluster may answer later.
        except errors.LaunchError as e:
            self._are_left = True
            why = f"{e}; {' and '.join(left)} may go on: delete what is left after the job"
        with self._lock:
            self._output.say(why, bad=True)
        return True

    def _follow(self, pod: Manifest) -> None:
        """Follows the output of a pod that has begun, once."""
        name = pod["metadata"]["name"]
        state = _state(pod)
        if name in self._followed or not ("running" in state or "terminated" in state):
            return
        thread = threading.Thread(target=self._read, args=(name, _task(pod)), daemon=True)
        self._followed[name] = thread
        with self._lock:
            self._output.begin(_task(pod), f"{name} on {_node(pod)}")
        thread.start()

    def _read(self, name: str, task: str) -> None:
        """Tells of a pod's lines until it has ended; a connection may break before."""
        again = False
        while True:
            process = self._cluster.logs(name, pods.CONTAINER, again)
            assert process.stdout is not None
            for data in process.stdout:
                self._tell(Line(task, data.decode("utf-8", "replace").rstrip("\r\n")))
            process.wait()
            again = True
            if name in self._ended or self._over.wait(1.0):
                return

    def _note_waiting(self, pod: Manifest) -> None:
        """Tells what a pod waits for, such as its image or a node, now and then."""
        name, why = pod["metadata"]["name"], _waits_for(pod)
        told, when = self._reminded.get(name, ("", 0.0))
        if why and (why != told or time.monotonic() - when > _REMINDER):
            self._reminded[name] = (why, time.monotonic())
            with self._lock:
                self._output.say(f"{_task(pod)} waits for Kubernetes: {why}")

    def _note_end(self, pod: Manifest) -> None:
        """Tells of a pod's end, once."""
        name, ended = pod["metadata"]["name"], _state(pod).get("terminated")
        if ended is None or name in self._ended:
            return
        self._ended.add(name)
        code = ended["exitCode"]
        if code:
            failure = _Failure(_task(pod), name, _node(pod), code, ended.get("finishedAt") or "")
            self._failures.append(failure)
            with self._lock:
                self._output.say(str(failure), bad=True)

    def _tell(self, line: Line) -> None:
        with self._lock:
            self._output.line(line)


def _role(manifest: Manifest) -> str | None:
    return manifest["metadata"].get("labels", {}).get("app.kubernetes.io/component")


def _task(pod: Manifest) -> str:
    """Such as "worker 3"."""
    annotations: Mapping[str, str] = pod["metadata"].get("annotations", {})
    index = annotations.get("batch.kubernetes.io/job-completion-index", "?")
    return f"{_role(pod)} {index}"


def _node(pod: Manifest) -> str:
    return pod["spec"].get("nodeName", "no node")


def _waits_for(pod: Manifest) -> str:
    """Why a pod's container does not run yet; empty if it does, or is only about to."""
    waiting = _state(pod).get("waiting", {})
    if waiting.get("reason", "ContainerCreating") != "ContainerCreating":
        return " ".join(filter(None, (waiting["reason"], waiting.get("message"))))
    for found in pod.get("status", {}).get("conditions", ()):
        if found["type"] == "PodScheduled" and found["status"] == "False":
            return found.get("message") or found.get("reason", "")
    return ""


def _state(pod: Manifest) -> Manifest:
    """The state of a pod's one container: `waiting`, `running` or `terminated`, with details."""
    statuses = pod.get("status", {}).get("containerStatuses", ())
    return next(itertools.chain((s.get("state", {}) for s in statuses), [{}]))
