"""Hosts and the agents on them: how the launchers `local`, `ssh` and `slurm` run tasks.

An agent (`agent.py`) is started by a command: the launcher's own Python here, `ssh host python`
there. Its source and all that follows, environments included, go over its standard input, so
that no command line shows them.
"""

import base64
import collections
import contextlib
import dataclasses
import importlib.resources
import itertools
import json
import queue
import shlex
import subprocess
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from launch import checks, errors, placement
from launch.launcher import Event, Exited, HostLost, Line
from launch.topology import Role, Task, Topology

CONNECT = 10.0  # s that a host may take to start its agent
ANSWER = 8.0  # s that an agent may take to answer
PING = 2.0  # s between two pings
PATIENCE = 20.0  # s of silence after which the launcher and a remote agent give each other up
BACKLOG = 10_000  # events that wait for the supervisor before agents are left unread
_MARK = "\x1e"  # As in agent.py.


def boot(python: str) -> list[str]:
    """Returns the command that starts an agent, whose source is then sent as the first line."""
    program = (
        "import base64,zlib;"
        'exec(zlib.decompress(base64.b64decode(open(0,"rb",0,closefd=False).readline())))'
    )
    return [python, "-u", "-c", program]


# Makes modules of the agent's sources, where there is no package `launch`.
_UNPACK = """
import sys, types
for name, source in SOURCES.items():
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    exec(compile(source, name, "exec"), module.__dict__)
sys.modules["launch.agent.serving"].Agent().run()
"""

# In the order of their imports.
_MODULES = ("processes", "lines", "ports", "facts", "keeper", "children", "serving")


def source() -> bytes:
    """Returns the agent's source as the line that `boot` expects."""
    folder = importlib.resources.files("launch.agent")
    sources = {"launch": "", "launch.agent": ""}
    for name in _MODULES:
        sources[f"launch.agent.{name}"] = folder.joinpath(f"{name}.py").read_text("utf-8")
    program = f"SOURCES = {sources!r}\n{_UNPACK}"
    return base64.b64encode(zlib.compress(program.encode(), 9)) + b"\n"


@dataclasses.dataclass(frozen=True)
class Machine:
    """A host on which tasks may run.

    Attributes:
      name: as messages call it.
      address: the name or address by which other hosts reach it.
      transport: the command that runs another command there, such as `("ssh", "n1")`; empty if the
        host is this one.
      through_shell: whether a shell on the host takes the command apart, as with ssh.
      python: the Python that runs the agent and, where the program begins with "python", the tasks.
      folder: the working folder of tasks.
      slots: workers that it takes; None for as many as wanted.
      gpus: GPUs that it should have; None for what is found.
      roles: which roles may run there; empty for all.
      remote: whether silence means that the host is gone; for a pipe on this machine it does not.
    """

    name: str
    address: str
    python: str
    folder: str
    transport: tuple[str, ...] = ()
    through_shell: bool = False
    slots: int | None = None
    gpus: int | None = None
    roles: tuple[str, ...] = ()
    remote: bool = True

    @property
    def command(self) -> list[str]:
        """The command that starts this machine's agent."""
        command = boot(self.python)
        if self.through_shell:
            command = ["exec " + shlex.join(command)]
        return [*self.transport, *command]


class Host:
    """The connection to one agent.

    Attributes:
      machine: where it is.
      lost: why the host counts as lost, or None.
      heard: when something last came from it (s, monotonic).
      facts: what the agent has found out about the host; see `agent/facts.py`.
    """

    def __init__(self, machine: Machine, events: "queue.Queue[Event]"):
        """Does not connect yet.

        Args:
          machine: where to start the agent.
          events: where lines, exits and the host's loss are put.
        """
        self.machine, self._events = machine, events
        self.lost: str | None = "it was not asked yet"
        self.heard = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.ports: list[int] = []
        self._numbers = itertools.count()
        self._closing = False
        self._hello = threading.Event()

    def connect(self, timeout: float = CONNECT) -> None:
        """Starts the agent.

        Raises:
          HostError: it did not come within `timeout` seconds; names the host and the cause.
        """
        self._answers: dict[int, queue.Queue] = collections.defaultdict(queue.Queue)
        self._hello = threading.Event()
        self._noise: collections.deque[str] = collections.deque(maxlen=5)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = False
        try:
            self._process = subprocess.Popen(
                self.machine.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Of a session of its own: Ctrl-C on the terminal is for the launcher to pass on.
                start_new_session=True,
            )
        except OSError as e:
            raise errors.HostError(
                f"host {self.machine.name}: cannot run {self.machine.command[0]}: "
                f"{(e.strerror or str(e)).lower()}; install it, or name another Python (--python)"
            ) from e
        self.lost, self.heard = None, time.monotonic()
        for target in (self._write, self._read, self._read_noise):
            threading.Thread(target=target, args=(self._process,), daemon=True).start()
        self._outbox.put(source())
        deadline = time.monotonic() + timeout
        while not self._hello.wait(0.05) and self.lost is None and time.monotonic() < deadline:
            pass
        if not self._hello.is_set():
            why = self.lost or f"no answer within {timeout:g} s"
            self.abandon()
            raise errors.HostError(f"host {self.machine.name}: {why}")
        self.tell("ping", patience=PATIENCE if self.machine.remote else None)

    @property
    def ready(self) -> bool:
        """Whether the agent is there and listens."""
        return self.lost is None and self._hello.is_set()

    # Threads of the connection.

    def _write(self, process: subprocess.Popen) -> None:
        assert process.stdin is not None
        outbox = self._outbox
        try:
            while (message := outbox.get()) is not None:
                process.stdin.write(message)
                process.stdin.flush()
        except OSError:
            pass  # The reader notices, too, and says why.
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _read(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for data in process.stdout:
            _before, mark, message = data.decode("utf-8", "replace").rpartition(_MARK)
            if not mark:
                self._noise.append(message.strip())
                continue
            self.heard = time.monotonic()
            self._receive(json.loads(message))
            while self._events.qsize() > BACKLOG and self.lost is None:
                time.sleep(0.01)
                self.heard = time.monotonic()  # The silence is ours.
        status = process.wait()
        if process is self._process and not self._closing:
            time.sleep(0.1)  # For the last words on standard error.
            self.lose(self._cause(status))

    def _read_noise(self, process: subprocess.Popen) -> None:
        assert process.stderr is not None
        noise = self._noise
        for data in process.stderr:
            if text := data.decode("utf-8", "replace").strip():
                noise.append(text)

    def _cause(self, status: int) -> str:
        said = "; ".join(self._noise) or "it said nothing"
        if status in (126, 127) and not self._hello.is_set():
            return (
                f"there is no {self.machine.python} that runs ({said}); install it there, or name "
                "another Python (--python)"
            )
        return f"its connection ended with {status}: {said}"

    def _receive(self, message: dict[str, Any]) -> None:
        if "line" in message:
            self._events.put(Line(*message["line"]))
        elif "exited" in message:
            self._events.put(Exited(*message["exited"]))
        elif "hello" in message:
            self._hello.set()
        elif (answer := self._answers.get(message["id"])) is not None:
            answer.put(message)

    # For the launcher.

    def lose(self, why: str) -> None:
        """Counts the host as lost, once, and tells of it."""
        if self.lost is None:
            self.lost = why
            if self._hello.is_set():
                self._events.put(HostLost(self.machine.name, why, time.monotonic() - self.heard))
            self.abandon()

    def abandon(self) -> None:
        """Ends the connection at once."""
        self.lost = self.lost or "it was given up"
        self._closing = True
        self._outbox.put(None)
        if self._process.poll() is None:
            self._process.kill()

    def tell(self, what: str, **values: Any) -> None:
        """Sends a message to which no answer is waited for."""
        self._send(what, values)

    def ask(self, what: str, timeout: float = ANSWER, **values: Any) -> Any:
        """Sends a message and returns the answer.

        Raises:
          HostError: there is no answer within `timeout` s, or the agent could not do it.
        """
        number = self._send(what, values, answered=True)
        deadline = time.monotonic() + timeout
        try:
            while True:
                try:
                    answer = self._answers[number].get(timeout=0.2)
                    break
                except queue.Empty:
                    if self.lost is not None or time.monotonic() > deadline:
                        why = self.lost or f"no answer within {timeout:g} s"
                        raise errors.HostError(f"host {self.machine.name}: {why}") from None
        finally:
            del self._answers[number]
        if "error" in answer:
            raise errors.HostError(f"host {self.machine.name}: {answer['error']}")
        return answer["result"]

    def _send(self, what: str, values: dict[str, Any], answered: bool = False) -> int:
        number = next(self._numbers)
        if answered:
            self._answers[number] = queue.Queue()
        message = {"id": number, "do": what, **values}
        self._outbox.put(json.dumps(message).encode() + b"\n")
        return number

    def close(self, deadline: float) -> None:
        """Ends the agent, and waits for it until `deadline` (s, monotonic)."""
        if self.lost is None:
            self._closing = True
            self.tell("leave", grace=1.0)
            self._outbox.put(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.1, deadline - time.monotonic()))
            self.abandon()


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
        host.facts = host.ask(
            "probe",
            argv=self._command(host),
            folder=host.machine.folder,
            environ=self._environ,
            addresses=addresses,
        )
        if host.ports:
            try:
                host.ask("reserve", ports=host.ports)
            except errors.HostError:
                host.abandon()
                raise

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

    def start(self, task: Task, environ: Mapping[str, str]) -> None:
        """Starts a task; a host that was lost is connected to again.

        Raises:
          HostError: the host cannot be reached now.
        """
        host = self._hosts[task.host]
        if host.lost is not None:
            self._reach(host)
        host.ask(
            "start",
            task=task.name,
            argv=self._command(host),
            folder=host.machine.folder,
            # What a task says last should not be lost in a buffer with it.
            environ={"PYTHONUNBUFFERED": "1", **self._environ, **environ},
            cores=list(task.cores),
        )

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

    def close(self) -> None:
        """Ends all agents, and with them all that is left."""
        self._closed.set()
        deadline = time.monotonic() + 8.0
        checks.at_once(lambda host: host.close(deadline), list(self._hosts.values()))
