"""What is found out before anything starts: whether hosts answer, agree, and have the program."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from launch import errors, placement
from launch.agent import facts as agent_facts
from launch.topology import WORKER, Role, Task

LIMIT = 30.0  # s for all hosts together: to connect, and to find out about themselves

T = TypeVar("T")


class Named(Protocol):
    """What a `machine.Machine` is called, and where."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...


def at_once(do: Callable[[T], None], things: Sequence[T], limit: float = LIMIT) -> None:
    """Calls `do` for each thing, each in a thread of its own, and waits `limit` seconds at most."""
    threads = [threading.Thread(target=do, args=(thing,), daemon=True) for thing in things]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def together(failed: Mapping[str, errors.LaunchError]) -> errors.LaunchError:
    """Returns one error for those of several hosts, a line for each."""
    first = next(iter(failed.values()))
    return type(first)("\n".join(str(e) for e in failed.values()))


def require(argv: Sequence[str], hosts: Sequence[tuple[Named, Mapping[str, Any]]]) -> None:
    """Checks that the program can run on all hosts, and that they agree.

    Args:
      argv: the program and its arguments.
      hosts: each host, and what its agent has found out.

    Raises:
      ProgramError: the program is not there.
      SpecificationError: versions differ, or a host does not know another one's name.
    """
    for host, facts in hosts:
        if facts["missing"]:
            remedy = (
                "every host needs the program in the same folder (a shared folder, or --rsync)"
                if len(hosts) > 1
                else "look at the command, and at the folder"
            )
            raise errors.ProgramError(f"host {host.name}: {facts['missing']}; {remedy}")
    first, expected = hosts[0]
    for host, facts in hosts:
        if agent_facts.is_python(argv[0]):
            for what, found, wanted in (
                ("Python", _minor(facts["python"]), _minor(expected["python"])),
                ("TensorFlow", facts["tensorflow"], expected["tensorflow"]),
            ):
                if found != wanted:
                    raise errors.SpecificationError(
                        f"host {host.name} ({host.address}) has {what} {found or 'not at all'}, "
                        f"but host {first.name} has {wanted or 'none'}; install the same, or name "
                        "another Python (--python)"
                    )
        if facts["unresolved"]:
            raise errors.SpecificationError(
                f"host {host.name} does not know the name(s) {', '.join(facts['unresolved'])}; "
                "give those hosts an address= that all hosts know"
            )


def require_gpus(
    roles: Sequence[Role], hosts: Sequence[tuple[placement.Limits, Mapping[str, Any]]]
) -> None:
    """Checks that the GPUs are known of each host on which workers with GPUs may run.

    Raises:
      SpecificationError: a host has an nvidia-smi that fails.
    """
    if any(role.name == WORKER and role.gpus == 0 for role in roles):
        return
    for host, facts in hosts:
        takes = not host.roles or WORKER in host.roles
        if facts["gpus_failure"] and takes and host.gpus != 0:
            raise errors.SpecificationError(
                f"host {host.name}: {facts['gpus_failure']}; look at its driver (nvidia-smi, and "
                "its persistence mode), or train on processors with --gpus_per_worker=0"
            )


def require_ways(
    blocked: Mapping[str, Sequence[tuple[str, int, str]]], tasks: Mapping[tuple[str, int], Task]
) -> None:
    """Checks that hosts get through to one another.

    Args:
      blocked: host -> address, port and cause of each connection that it could not make.
      tasks: (address, port) -> the task that will listen there.

    Raises:
      SpecificationError: a host does not get through; names both, the task, and the cause.
    """
    for host, failed in blocked.items():
        for address, port, why in failed:
            task = tasks[address, port]
            raise errors.SpecificationError(
                f"host {host} does not reach host {task.host}, where {task.name} will listen at "
                f"{task.endpoint}: {why}; open the ports between the hosts (--ports chooses from a "
                "range), or correct the address= of the host"
            )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
