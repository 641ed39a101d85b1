"""The processes that systems of one family share, and one turn of a system."""

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.wire import processor
from benchmarks.wire.hosts import Traffic
from benchmarks.wire.program import Program
from benchmarks.wire.sizes import WORKERS
from benchmarks.wire.systems import System

WORKER_HOSTS = tuple(f"worker{i}" for i in range(WORKERS))


class Moment(NamedTuple):
    """What is read when the clock starts or stops.

    Attributes:
      traffic: host -> `Traffic`; None on loopback.
      processor: host -> `processor.Time`, of the family's process there.
    """

    traffic: dict[str, Traffic] | None
    processor: dict[str, processor.Time]


class Family:
    """The processes that systems of one family share, from its first turn on."""

    def __init__(
        self, name: str, start: "Start", port: int, network, folder: str, environ: dict, timeout
    ):
        """Starts nothing yet.

        Args:
          name: of the family.
          start: starts its processes, by `spawn`.
          port: on which its processes listen, each on its host.
          network: a `hosts.Network` or `hosts.Loopback`, entered.
          folder: for the processes' logs.
          environ: of the processes.
          timeout: seconds that a start or a turn may take.
        """
        self.name, self._start, self._port = name, start, port
        self._network, self._folder = network, folder
        self._environ, self._timeout = environ, timeout
        self._programs: list[Program] = []
        self.speakers: list[Program] = []

    def start(self) -> None:
        """Starts the processes and waits until all are ready.

        Raises:
          Failed: one of them did not come up.
        """
        self._start(self)
        for program in self._programs:
            # tfps.serve does not print lines, and tfps's chief itself waits for the servers.
            if program.says_ready:
                program.answer(self._timeout, "start")

    def ask(self, message: dict, what: str) -> list[dict]:
        """Sends a message to all that answer, and returns the answers; starts the processes first.

        Args:
          message: to each of them.
          what: the message in words.

        Raises:
          Failed: with one line about what went wrong.
        """
        if not self._programs:
            self.start()
        for program in self.speakers:
            program.tell(message)
        return [program.answer(self._timeout, what) for program in self.speakers]

    def pid(self, host: str) -> int | None:
        """The process of this family on a host; None before the first turn."""
        return next((p.pid for p in self._programs if p.name.split()[1] == host), None)

    def run(self, system: System, warmup: int, steps: int) -> dict:
        """One turn.

        Args:
          warmup: steps of each worker before the clock starts.
          steps: steps of each worker that are measured.

        Returns:
          `seconds`, `steps` (over all workers), `parameters`, for tfps `predicted_up`
          and `predicted_down` in bytes, and `up` and `down`: bytes per step that left
          and reached a worker between the start and stop of the clock; None on loopback.
          `processor` is of `processor.per_step`.

        Raises:
          Failed: with one line about what went wrong.
        """
        message = {"settings": system.settings, "stride": system.stride}
        message |= {"warmup": warmup, "steps": steps}
        answers = self.ask(message, f"{warmup} + {steps} steps of {system.name}")
        taken = sum(a["steps"] for a in answers)
        first, *_, last = self.speakers[0].marks
        up, down = _per_step(first.traffic, last.traffic, taken)
        return {
            **answers[0],
            "seconds": max(a["seconds"] for a in answers),
            "steps": taken,
            "up": up,
            "down": down,
            "processor": processor.per_step(first.processor, last.processor, taken),
        }

    def end(self) -> None:
        """Ends the processes, clients before the servers that they use."""
        for program in self.speakers:
            program.end()
        for program in self._programs:
            program.kill()
        for program in self._programs:
            program.end()
        self._programs, self.speakers = [], []

    def spawn(self, module: str, host: str, extra: dict, speaks: bool) -> None:
        """Starts a Python module on a host.

        Args:
          module: its name. A module of the benchmarks says when it is ready (`lines.serve`).
          host: name of the host.
          extra: variables of its environment, besides the ones that all processes have.
          speaks: whether it is given orders and answers.
        """
        program = Program(
            f"{self.name} {host}",
            [*self._network.command(host), sys.executable, "-m", module],
            {**self._environ, **extra},
            os.path.join(self._folder, f"{self.name}-{host}.log"),
            ready=module.startswith("benchmarks."),
            at_mark=self._moment,
        )
        self._programs.append(program)
        if speaks:
            self.speakers.append(program)

    def _moment(self) -> Moment:
        pids = [(p.name.split()[1], p.pid) for p in self._programs]
        return Moment(self._network.traffic(), processor.of(pids))

    def address(self, host: str) -> str:
        """Where the family's process on a host listens."""
        return self._network.address(host, self._port)

    @property
    def interface(self) -> str:
        """Name of the network interface of each host."""
        return self._network.interface

    def spec(self, *jobs: str) -> dict[str, list[str]]:
        """The addresses of jobs, as TF_CONFIG has them."""
        hosts = {"chief": ("chief",), "worker": WORKER_HOSTS, "ps": ("ps0", "ps1")}
        return {job: [self.address(host) for host in hosts[job]] for job in jobs}


Start = Callable[[Family], None]


def _per_step(before, after, steps: int) -> tuple[float | None, float | None]:
    if before is None:
        return None, None
    moved = [
        Traffic(after[h].up - before[h].up, after[h].down - before[h].down) for h in WORKER_HOSTS
    ]
    return sum(m.up for m in moved) / steps, sum(m.down for m in moved) / steps
