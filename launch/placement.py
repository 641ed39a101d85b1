"""Which task runs on which host, with which GPUs and cores. Plain data in, plain data out."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from launch import errors
from launch.topology import EVALUATOR, PS, SPARE, WORKER, Role


class Limits(Protocol):
    """What a `machine.Machine` says about itself."""

    @property
    def name(self) -> str: ...

    @property
    def slots(self) -> int | None: ...

    @property
    def gpus(self) -> int | None: ...

    @property
    def roles(self) -> tuple[str, ...]: ...


@dataclasses.dataclass(frozen=True)
class Room:
    """What a host has for tasks.

    Attributes:
      host: its name.
      slots: workers that it takes; None for as many as wanted.
      gpus: names of its GPUs.
      roles: roles that may run there; empty for all.
      nodes: the cores of each NUMA node.
    """

    host: str
    slots: int | None = None
    gpus: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    nodes: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, machine: Limits, facts: Mapping[str, Any]) -> "Room":
        """Makes the room of a machine about which an agent has found out `facts`.

        Raises:
          SpecificationError: the machine has fewer GPUs than its specification says.
        """
        gpus = tuple(facts["gpus"])
        if machine.gpus is not None and machine.gpus > len(gpus):
            raise errors.SpecificationError(
                f"host {machine.name} should have {machine.gpus} GPUs, but nvidia-smi shows "
                f"{len(gpus)}; correct gpus= of the host, or look at its driver"
            )
        return cls(
            machine.name,
            machine.slots,
            gpus if machine.gpus is None else gpus[: machine.gpus],
            tuple(machine.roles),
            tuple(tuple(node) for node in facts["nodes"]),
        )

    def takes(self, role: str) -> bool:
        """Returns whether tasks of the role may run there."""
        return not self.roles or role in self.roles or (role == SPARE and PS in self.roles)

    def workers(self, role: Role) -> int | None:
        """Returns how many workers it has room for; None for as many as wanted."""
        limits = [] if self.slots is None else [self.slots]
        if role.gpus:
            limits.append(len(self.gpus) // role.gpus)
        return min(limits) if limits else None


@dataclasses.dataclass(frozen=True)
class Placed:
    """A task and its place; see `topology.Task`."""

    role: str
    index: int
    host: str
    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] = ()


def place(roles: Sequence[Role], rooms: Sequence[Room], pin: str = "none") -> list[Placed]:
    """Chooses a host for each task.

    The chief runs on the first host that takes it, and parameter servers one on each host in turn,
    since each needs its host's network. Spare servers go on with the hosts after theirs. Workers
    are dealt out one to each host in turn, as far as slots and GPUs go. An evaluator runs on the
    last host that takes it, for the first has the most to do. GPUs are for workers only: the other
    tasks see none.

    Args:
      roles: what has to run.
      rooms: the hosts, in the order in which they are filled.
      pin: "cores" for cores that no other task of the host has, "numa" for the cores of one NUMA
        node, "none" for no pinning.

    Raises:
      SpecificationError: the tasks do not fit; says what was asked, what there is, and what to do.
    """
    placed: list[Placed] = []
    for role in roles:
        usable = [room for room in rooms if room.takes(role.name)]
        if not usable:
            raise errors.SpecificationError(
                f"{role.count} {role.name} task(s), but no host takes any; add {role.name} to "
                "roles= of a host"
            )
        if role.name == WORKER:
            hosts = _workers(role, usable)
        elif role.name == EVALUATOR:
            hosts = [usable[-1].host] * role.count
        else:
            first = sum(p.role == PS for p in placed) if role.name == SPARE else 0
            hosts = [usable[(first + i) % len(usable)].host for i in range(role.count)]
        placed += [Placed(role.name, i, host) for i, host in enumerate(hosts)]
    by_host = {room.host: room for room in rooms}
    counts = {role.name: role for role in roles}
    found = []
    for room in rooms:
        here = [p for p in placed if p.host == room.host]
        found += _with_cores(_with_gpus(here, counts, by_host[room.host]), counts, room, pin)
    order = {(p.role, p.index): i for i, p in enumerate(placed)}
    return sorted(found, key=lambda p: order[p.role, p.index])


def _workers(role: Role, rooms: Sequence[Room]) -> list[str]:
    """The host of each worker."""
    free = {room.host: room.workers(role) for room in rooms}
    given = dict.fromkeys(free, 0)
    hosts: list[str] = []
    while len(hosts) < role.count:
        before = len(hosts)
        for host, most in free.items():
            if len(hosts) < role.count and (most is None or given[host] < most):
                hosts.append(host)
                given[host] += 1
        if len(hosts) == before:
            room = ", ".join(f"{host} takes {most}" for host, most in free.items())
            each = f" with {role.gpus} GPU(s) each" if role.gpus else ""
            raise errors.SpecificationError(
                f"{role.count} workers{each} do not fit: {room}; lower --workers, or give hosts "
                "more slots or GPUs"
            )
    # Neighbours in number share a host, so that rings over workers cross the network seldom.
    return [host for host in free for _ in range(given[host])]


def _with_gpus(here: list[Placed], roles: Mapping[str, Role], room: Room) -> list[Placed]:
    """Deals out a host's GPUs to its workers."""
    workers = [p for p in here if p.role == WORKER]
    found = [dataclasses.replace(p, gpus=()) for p in here if p.role != WORKER]
    if not workers:
        return found
    each = roles[WORKER].gpus
    if each is None:
        each = len(room.gpus) // len(workers)
        if room.gpus and not each:
            raise errors.SpecificationError(
                f"host {room.host} has {len(room.gpus)} GPU(s) for {len(workers)} workers; lower "
                "--workers or the host's slots, or train on processors with --gpus_per_worker=0"
            )
        if not room.gpus:
            return found + workers
    for i, p in enumerate(workers):
        found.append(dataclasses.replace(p, gpus=room.gpus[i * each : (i + 1) * each]))
    return found


def _with_cores(
    here: list[Placed], roles: Mapping[str, Role], room: Room, pin: str
) -> list[Placed]:
    """Pins a host's tasks to cores."""
    if pin == "none" or not here:
        return here
    if pin == "numa":
        nodes = itertools.cycle(room.nodes)
        return [dataclasses.replace(p, cores=next(nodes)) for p in here]
    cores = [core for node in room.nodes for core in node]
    asked = [roles[p.role].cores for p in here]
    spare = len(cores) - sum(asked)
    silent = asked.count(0)
    if spare < silent:
        raise errors.SpecificationError(
            f"host {room.host} has {len(cores)} cores for {len(here)} tasks that need "
            f"{sum(asked) + silent}; start fewer, ask for fewer cores, or do without --pin=cores"
        )
    shares = _shares(spare, silent)
    free = iter(cores)
    return [
        dataclasses.replace(p, cores=tuple(itertools.islice(free, wanted or next(shares))))
        for p, wanted in zip(here, asked, strict=True)
    ]


def _shares(total: int, count: int) -> Iterator[int]:
    """Yields `count` numbers that add up to `total` and differ by one at most."""
    for i in range(count):
        yield total // count + (i < total % count)
