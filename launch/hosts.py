"""Hosts with agents: how the launchers `local`, `ssh` and `slurm` run tasks.

An agent (`agent/`) is started by a command: the launcher's own Python here, `ssh host python`
there.
"""

import queue
import threading
import time
from collections.abc import Mapping, Sequence

from launch import checks, errors, placement
from launch.host import PATIENCE, PING, PROBE, RESERVE, Host
from launch.launcher import Event
from launch.machine import Machine
from launch.topology import Role, Task, Topology


class HostsLauncher:
    """A `Launcher` whose tasks run on hosts with agents."""

    def __init__(
        self,
        machines: Sequence[Machine],
        argv: Sequence[str],
        environ: Mapping[str, str] | None = None,
        ports: Sequence[int] = (),
        pin: str = "none",
    ):
        """Does not connect yet.

        Args:
          machines: the hosts, in the order in which they are filled.
          argv: the program and its arguments. "python" as the first word stands for each machine's
            Python.
          environ: what the user adds to the environment of every task.
          ports: numbers from which ports are chosen; empty for any that are free.
          pin: "cores", "numa" or "none": to what tasks are pinned.
        """
        self._events: queue.Queue[Event] = queue.Queue()
        self._hosts = {m.name: Host(m, self._events) for m in machines}
        self._argv, self._environ = list(argv), dict(environ or {})
        self._ports, self._pin = list(ports), pin
        self._topology: Topology | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._ping, daemon=True).start()

    def check(self, roles: Sequence[Role], again: bool = False) -> Topology:
        """Connects, asks every host what it has, places the tasks and keeps ports for them.

        Raises:
          HostError: a host does not answer; only if `again` and the others have room, it is not
            needed.
          SpecificationError: the tasks do not fit, or hosts differ.
          ProgramError: the program is not on a host.
        """
        self._connect(again)
        if self._topology and all(self._hosts[t.host].lost is None for t in self._topology.tasks):
            return self._topology
        hosts = [h for h in self._hosts.values() if h.lost is None]
        checks.require_gpus(roles, [(h.machine, h.facts) for h in hosts])
        placed = placement.place(
            roles, [placement.Room.of(h.machine, h.facts) for h in hosts], self._pin
        )
        used = {p.host for p in placed}
        checks.require(self._argv, [(h.machine, h.facts) for h in hosts if h.machine.name in used])
        self._topology = self._with_ports(placed)
        self._try_ways(self._topology)
        return self._topology

    def _connect(self, again: bool) -> None:
        """Connects to all hosts at once, and finds out about them."""
        failed: dict[str, errors.HostError] = {}

        def connect(host: Host) -> None:
            try:
                self._reach(host)
            except errors.HostError as e:
                failed[host.machine.name] = e

        lost = [h for h in self._hosts.values() if h.lost is not None]
        checks.at_once(connect, lost)
        for host in lost:
            if host.machine.name not in failed and not host.facts:
                failed[host.machine.name] = errors.HostError(
                    f"host {host.machine.name}: it was not ready within {checks.LIMIT:g} s"
                )
        if failed and not (again and len(failed) < len(self._hosts)):
            raise checks.together(failed)

    def _reach(self, host: Host) -> None:
        """Connects to a host, and keeps there the ports that its tasks have."""
        host.facts = {}
        host.connect()
        addresses = [h.machine.address for h in self._hosts.values()]
        try:
            facts = host.ask(
                "probe",
                argv=self._command(host),
                folder=host.machine.folder,
                environ=self._environ,
                addresses=addresses,
                timeout=PROBE,
            )
            if host.ports:
                host.ask("reserve", ports=host.ports, timeout=RESERVE)
        except errors.HostError:
            host.abandon()  # Without its ports it is of no use.
            raise
        host.facts = facts

    def _command(self, host: Host) -> list[str]:
        first, *others = self._argv
        return [host.machine.python if first == "python" else first, *others]

    def _with_ports(self, placed: Sequence[placement.Placed]) -> Topology:
        ports = {}
        for name, host in self._hosts.items():
            count = sum(p.host == name for p in placed)
            if count:
                host.ports = host.ask(
                    "reserve", count=count, ports=host.ports, among=self._ports or None
                )
                ports[name] = iter(host.ports)
        return Topology(
            tuple(
                Task(
                    p.role,
                    p.index,
                    p.host,
                    self._hosts[p.host].machine.address,
                    next(ports[p.host]),
                    p.gpus,
                    p.cores,
                )
                for p in placed
            )
        )

    def _try_ways(self, topology: Topology) -> None:
        """Lets each host connect to a port of each other host, where there are several.

        Raises:
          SpecificationError: a host does not get through to another one's task.
        """
        first = {task.host: task for task in reversed(topology.tasks)}
        if len(first) < 2:
            return
        hosts = [self._hosts[name] for name in first]
        for host in hosts:
            host.ask("listen", ports=[first[host.machine.name].port])
        blocked: dict[str, list] = {}

        def reach(host: Host) -> None:
            others = [(t.address, t.port) for t in first.values() if t.host != host.machine.name]
            blocked[host.machine.name] = host.ask("reach", addresses=others)

        checks.at_once(reach, hosts)
        for host in hosts:
            host.ask("listen", ports=[])
        checks.require_ways(blocked, {(t.address, t.port): t for t in first.values()})

    def start(self, task: Task, environ: Mapping[str, str]) -> int:
        """Starts a task; a host that was lost is connected to again.

        Returns:
          The number of the connection; see `Launcher`.

        Raises:
          HostError: the host cannot be reached now.
        """
        host = self._hosts[task.host]
        if host.lost is not None:
            self._reach(host)
        connection = host.connection
        # CUDA's own order is that of speed, and nvidia-smi's numbers are in this one.
        numbered = task.gpus and host.facts["gpus_numbered"]
        order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if numbered else {}
        host.ask(
            "start",
            task=task.name,
            argv=self._command(host),
            folder=host.machine.folder,
            # What a task says last should not be lost in a buffer with it.
            environ={"PYTHONUNBUFFERED": "1", **order, **self._environ, **environ},
            cores=list(task.cores),
        )
        return connection

    def watch(self, timeout: float) -> Event | None:
        """Returns the next event, or None after `timeout` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def _ping(self) -> None:
        """Lets the agents know, in a thread, that the launcher lives, and notices who is silent."""
        while not self._closed.wait(PING):
            for host in [h for h in self._hosts.values() if h.machine.remote and h.ready]:
                host.tell("ping", patience=PATIENCE)
                if (silent := time.monotonic() - host.heard) > PATIENCE:
                    host.lose(f"nothing was heard of it for {silent:.0f} s")

    def signal(self, task: Task, signum: int) -> None:
        """Sends a signal to the process group of a task."""
        host = self._hosts[task.host]
        if host.lost is None:
            host.tell("signal", task=task.name, signum=int(signum))

    def stop(self, grace: float) -> None:
        """Begins to end all tasks."""
        for host in self._hosts.values():
            if host.lost is None:
                host.tell("stop", grace=grace)

    def hurry(self) -> None:
        """Lets nobody wait for hosts any longer; called by a signal handler."""
        for host in self._hosts.values():
            host.hurried = True

    def close(self) -> None:
        """Ends all agents, and with them all that is left."""
        self._closed.set()
        deadline = time.monotonic() + 8.0
        checks.at_once(lambda host: host.close(deadline), list(self._hosts.values()))
