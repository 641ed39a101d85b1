"""What is asked of a Kubernetes cluster, by way of the user's own `kubectl` and its context."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from launch import errors, yaml_text
from launch.pods import Manifest

_TIMEOUT = 60.0  # s for one command


class Kubectl:
    """Commands of kubectl for the objects of one job."""

    def __init__(self, name: str, namespace: str = "", program: str = "kubectl"):
        """Does not call anything yet.

        Args:
          name: the job's name, which its objects have as a label.
          namespace: where the objects are; empty for the namespace of kubectl's context.
          program: the command.
        """
        self._name = name
        self._command = [program, *([f"--namespace={namespace}"] if namespace else [])]
        self._selector = f"--selector=app.kubernetes.io/instance={name}"

    def create(self, manifests: Sequence[Manifest]) -> list[Manifest]:
        """Creates objects, and returns them as the cluster has them.

        Raises:
          FlagError: an object of that name exists already.
          LaunchError: the cluster does not answer, or does not take the objects.
        """
        done = self._run(
            ["create", "--filename=-", "--output=json"], stdin=yaml_text.documents(manifests)
        )
        if done.returncode:
            said = done.stderr.strip()
            if "AlreadyExists" in said or "already exists" in said:
                raise errors.FlagError(
                    f"a job --name={self._name} exists already; choose another name, or end it: "
                    f"python -m launch kubernetes --name={self._name} stop"
                )
            raise _refusal("create", said)
        return _objects(done.stdout)

    def get(self, *kinds: str) -> list[Manifest]:
        """Returns the job's objects of some kinds, such as `pods` and `jobs`.

        Raises:
          LaunchError: the cluster does not answer, or refuses.
        """
        done = self._run(["get", ",".join(kinds), self._selector, "--output=json"])
        if done.returncode:
            raise _refusal("get", done.stderr)
        return json.loads(done.stdout)["items"]

    def suspend(self, manifest: Manifest, suspended: bool = True) -> None:
        """Ends the pods of a Job or JobSet for a while, or lets a suspended one begin.

        Raises:
          LaunchError: the cluster does not answer, or refuses.
        """
        patch = json.dumps({"spec": {"suspend": suspended}})
        self._require(
            *("patch", kind(manifest), manifest["metadata"]["name"]),
            *("--type=merge", f"--patch={patch}"),
        )

    def delete(self, kinds: Sequence[str], names: Sequence[str] = ()) -> list[str]:
        """Deletes the job's objects of some kinds with their pods, which get SIGTERM.

        Args:
          kinds: the kinds, such as `job.batch`.
          names: of the objects, if not all of the job's are meant.

        Returns:
          The names of what was deleted.

        Raises:
          LaunchError: the cluster does not answer, or refuses.
        """
        return self._require(
            *("delete", ",".join(kinds), *(names or [self._selector]), "--ignore-not-found"),
            *("--cascade=background", "--wait=false", "--output=name"),
        ).split()

    def logs(self, pod: str, container: str, again: bool = False) -> subprocess.Popen:
        """Starts a process that writes what a pod has written and goes on to write.

        Args:
          pod: the pod's name.
          container: the name of its container.
          again: whether a process that did so has ended too early; only what is new is written.
        """
        since = ["--since=1s"] if again else []
        return subprocess.Popen(
            [*self._command, "logs", "--follow", f"--container={container}", *since, pod],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _require(self, *arguments: str) -> str:
        done = self._run(arguments)
        if done.returncode:
            raise _refusal(arguments[0], done.stderr)
        return done.stdout

    def _run(self, arguments: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._command, *arguments],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
            )
        except FileNotFoundError as e:
            raise errors.ProgramError(
                f"there is no {self._command[0]!r}; install it, or print the manifests "
                "(without --apply) and create them elsewhere"
            ) from e
        except subprocess.TimeoutExpired as e:
            raise errors.HostError(
                f"kubectl {arguments[0]} did not end within {_TIMEOUT:g} s; see whether the "
                "cluster of its context answers: kubectl version"
            ) from e


def kind(manifest: Mapping[str, Any]) -> str:
    """Returns the kind of an object as kubectl takes it, such as `job.batch`."""
    return f"{manifest['kind'].lower()}.{manifest['apiVersion'].partition('/')[0]}"


def _refusal(verb: str, said: str) -> errors.LaunchError:
    """The error for what kubectl said: a cluster that is away may be tried again, a refusal not."""
    # Lines of the client's own log, such as "E1126 17:30:34 memcache.go", say nothing more.
    lines = [line for line in said.split("\n") if not re.match(r"[EWI]\d{4} ", line)]
    line = " ".join(" ".join(lines).split()) or "failed without a word"
    away = re.search(
        "unable to connect|was refused|connection refused|timeout|timed out|unavailable|EOF",
        line,
        re.I,
    )
    kind = errors.HostError if away else errors.SpecificationError
    return kind(f"kubectl {verb}: {line}")


def _objects(text: str) -> list[Manifest]:
    """The objects in kubectl's output: a list, or one document behind the other."""
    found: list[Manifest] = []
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        item, end = decoder.raw_decode(rest)
        found += item["items"] if item.get("kind") == "List" else [item]
        rest = rest[end:].lstrip()
    return found


def condition(manifest: Mapping[str, Any], *types: str) -> Mapping[str, Any] | None:
    """Returns the first of an object's conditions that is true and of one of the types, or None."""
    for found in manifest.get("status", {}).get("conditions", ()):
        if found["type"] in types and found["status"] == "True":
            return found
    return None
