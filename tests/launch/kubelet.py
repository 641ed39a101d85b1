"""Stands in for Kubernetes: runs manifests of Jobs as processes in network namespaces.

There is no Kubernetes here. What is played is what its documentation says of Indexed Jobs, of pod
failure policies and of the end of pods; containers have the manifests' commands, environments,
volumes, users and read-only roots, and hosts have the pods' names.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

from benchmarks.wire import hosts
from tests.launch.slurm_cluster import wait_until

# The image: this machine, with the repository at /srv.
_ENTER = """
mount --bind "$1" /etc/hosts && mount --bind "$2" "$3" && mount --bind "$4" /srv &&
mount --bind "$5" /tmp && mount -o remount,bind,ro / && cd "$3" && shift 5 && exec "$@"
"""


def why_not() -> str | None:
    """Why pods cannot be played here, or None."""
    missing = [tool for tool in ("unshare", "setpriv", "mount") if not shutil.which(tool)]
    return f"no {', '.join(missing)} here" if missing else hosts.why_not()


def expand(text: str, environ: dict[str, str]) -> str:
    """`$(NAME)` becomes the variable's value if there is one, `$$` a dollar."""
    pattern = r"\$\$|\$\(([^)]*)\)"
    return re.sub(pattern, lambda m: "$" if m[0] == "$$" else environ.get(m[1], m[0]), text)


@dataclasses.dataclass
class Pod:
    """A pod: one process."""

    index: int
    host: str
    process: subprocess.Popen
    disrupted: bool = False

    def signal(self, signum: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signum)


class Job:
    """An Indexed Job and its controller."""

    def __init__(self, manifest, start):
        self.name = manifest["metadata"]["name"]
        self.spec = manifest["spec"]
        self.reason: str | None = None  # Why it has failed.
        self.pods: list[Pod] = []  # All that there were.
        self._start = start
        self._succeeded: set[int] = set()
        self._failed: set[int] = set()
        self._failures = dict.fromkeys(range(self.spec["completions"]), 0)
        self.running = [self._begin(i) for i in self._failures]

    @property
    def complete(self) -> bool:
        return len(self._succeeded) == self.spec["completions"]

    def _begin(self, index: int) -> Pod:
        pod = self._start(self, index)
        self.pods.append(pod)
        return pod

    def look(self) -> None:
        """Deals with pods that have ended."""
        for pod in [p for p in self.running if p.process.poll() is not None]:
            self.running.remove(pod)
            action = self._action(pod)
            if action == "Succeeded":
                self._succeeded.add(pod.index)
            elif action == "FailJob":
                self._fail("PodFailurePolicy")
            elif self.reason is None:
                self._failures[pod.index] += action == "Count"
                if action == "FailIndex" or (
                    self._failures[pod.index] > self.spec["backoffLimitPerIndex"]
                ):
                    self._failed.add(pod.index)
                else:
                    self.running.append(self._begin(pod.index))
        if len(self._failed) > self.spec["maxFailedIndexes"]:
            self._fail("MaxFailedIndexesExceeded")

    def _fail(self, reason: str) -> None:
        self.reason = self.reason or reason
        for pod in self.running:
            pod.signal(signal.SIGTERM)

    def _action(self, pod: Pod) -> str:
        """The first rule that fits decides; without one, the failure is counted."""
        code = exit_code(pod)
        if code == 0:
            return "Succeeded"
        for rule in self.spec["podFailurePolicy"]["rules"]:
            if pod.disrupted and "onPodConditions" in rule:
                return rule["action"]
            if "onExitCodes" in rule and matches(code, rule["onExitCodes"]):
                return rule["action"]
        return "Count"


def matches(code: int, on: dict) -> bool:
    """Whether a rule is for an exit code, which is not 0."""
    return (code in on["values"]) == (on["operator"] == "In")


def exit_code(pod: Pod) -> int:
    """The code as a container's state has it: 128 + n for signal n."""
    status = pod.process.wait(30)
    return status if status >= 0 else 128 - status


class Kubernetes:
    """A cluster with one job."""

    def __init__(self, folder: pathlib.Path, network: hosts.Network, python: str, root: bool):
        """Makes the job's volume.

        Args:
          folder: where files of pods are kept.
          network: has a namespace for each pod.
          python: what "python" is in the image.
          root: whether programs run as root, since the image's Python is root's alone.
        """
        self.folder, self._network, self._python, self._root = folder, network, python, root
        self.volume = folder / "volume"
        self.volume.mkdir()
        self.volume.chmod(0o777)
        folder.chmod(0o755)
        self.jobs: dict[str, Job] = {}

    def apply(self, manifests: list) -> None:
        jobs = [m for m in manifests if m["kind"] == "Job"]
        names = [
            (f"{m['metadata']['name']}-{i}", m["spec"]["template"]["spec"]["subdomain"])
            for m in jobs
            for i in range(m["spec"]["completions"])
        ]
        lines = [f"{self._address(host)} {host} {host}.{domain}" for host, domain in names]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        for manifest in jobs:
            job = Job(manifest, self._start)
            self.jobs[job.name.rpartition("-")[2]] = job

    def _machine(self, host: str) -> str:
        """The namespace of a pod such as gpt-worker-1."""
        _, role, index = host.rsplit("-", 2)
        return "chief" if role == "chief" else f"{role}{index}"

    def _address(self, host: str) -> str:
        return self._network.address(self._machine(host), 0).rpartition(":")[0]

    def _start(self, job: Job, index: int) -> Pod:
        spec = job.spec["template"]["spec"]
        (container,) = spec["containers"]
        host = f"{job.name}-{index}"
        environ = {"PATH": os.environ["PATH"]}
        for item in container["env"]:
            if "valueFrom" in item:
                path = item["valueFrom"]["fieldRef"]["fieldPath"]
                assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
                environ[item["name"]] = str(index)
            else:
                environ[item["name"]] = expand(item["value"], environ)
        command = [expand(word, environ) for word in container["command"]]
        if command[0] == "python":
            command[0] = self._python
        return Pod(index, host, self._run(host, spec, container, command, environ))

    def _run(self, host, spec, container, command, environ) -> subprocess.Popen:
        scratch = self.folder / f"{host}.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        scratch.chmod(0o777)
        mounts = [m["mountPath"] for m in container["volumeMounts"]]
        assert mounts == [container["workingDir"], "/tmp"]
        repository = pathlib.Path(__file__).parent.parent.parent
        folders = [self.folder / "hosts", self.volume, mounts[0], repository, scratch]
        with (self.folder / f"{host}.log").open("ab") as log:
            return subprocess.Popen(
                [
                    *self._network.command(self._machine(host)),
                    *("unshare", "--mount", "sh", "-c", _ENTER, "sh", *map(str, folders)),
                    *(() if self._root else self._user(spec["securityContext"])),
                    *command,
                ],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _user(self, security) -> list[str]:
        assert security["runAsNonRoot"]
        return [
            "setpriv",
            f"--reuid={security['runAsUser']}",
            f"--regid={security['runAsGroup']}",
            *("--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
        ]

    def log(self, host: str) -> str:
        return (self.folder / f"{host}.log").read_text()

    def logs(self) -> str:
        return "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in self.folder.glob("*.log"))

    def until(self, condition, timeout: float = 30) -> None:
        """Plays the controllers until the condition holds."""

        def holds():
            for job in self.jobs.values():
                job.look()
            return condition()

        wait_until(holds, timeout, self.logs)

    def evict(self, pod: Pod) -> float:
        """Ends a pod as Kubernetes does; returns how long it took (s)."""
        pod.disrupted = True
        grace = self.jobs["worker"].spec["template"]["spec"]["terminationGracePeriodSeconds"]
        began = time.monotonic()
        pod.signal(signal.SIGTERM)
        try:
            pod.process.wait(grace)
        except subprocess.TimeoutExpired:
            pod.signal(signal.SIGKILL)
            pod.process.wait(10)
        return time.monotonic() - began

    def close(self) -> None:
        for job in self.jobs.values():
            for pod in job.pods:
                pod.signal(signal.SIGKILL)
                pod.process.wait(10)
