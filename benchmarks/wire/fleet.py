"""The processes of all families of systems on the hosts of one network, and their turns."""

import collections
import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.wire.hosts import Traffic
from benchmarks.wire.sizes import WORKERS
from benchmarks.wire.systems import System

_WORKER_HOSTS = tuple(f"worker{i}" for i in range(WORKERS))
# In namespaces every host has its own ports, so only two families must not use the same ports.
_FIRST_PORT = 2222

# How often a family's processes may be lost. Each loss costs a timeout and a new start.
_LOSSES = 3


class Failed(Exception):
    """A system did not do what it was told; the message says which and why."""


class Program:
    """A process on a host."""

    def __init__(
        self, name: str, command: list[str], environ: dict, log: str, ready: bool, at_mark
    ):
        """Starts it.

        Args:
          name: for messages, such as `stock worker0`.
          command: the command line.
          environ: of the process.
          log: file for what it has to say besides answers.
          ready: whether it says so when it is (`lines.serve`).
          at_mark: called when it marks a moment (`lines.mark`); results are in `marks`.
        """
        self.name, self.log, self.says_ready = name, log, ready
        self.marks: list = []
        self._at_mark = at_mark
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        with open(log, "w") as file:
            self._process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                # Ctrl-C must reach only the main process, which ends all other processes in order.
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            if not line.startswith("{"):
                continue
            message = json.loads(line)
            if "mark" in message:
                self.marks.append(self._at_mark())
            else:
                self._answers.put(message)
        self._answers.put(None)

    def tell(self, message: dict) -> None:
        self.marks = []
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"{self.name} is gone; {self._last_words()}") from None

    def answer(self, timeout: float, what: str) -> dict:
        """Its next answer.

        Raises:
          Failed: it reports an error, ended, or took longer than `timeout` s for `what`.
        """
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise Failed(
                f"{self.name}: no answer to '{what}' within {timeout:g} s; {self._last_words()}"
            ) from None
        if answer is None:
            code = self._process.wait()
            raise Failed(f"{self.name} ended with {code} during '{what}'; {self._last_words()}")
        if "error" in answer:
            raise Refused(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        with open(self.log, errors="replace") as file:
            lines = collections.deque((line for line in file if line.strip()), maxlen=1)
        return f"its log {self.log} ends in: {lines[0].strip()[:200] if lines else '(nothing)'}"

    def end(self) -> None:
        """Closes the program's input, which ends it; kills the program if that takes over 2 s."""
        process = self._process
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)


class Refused(Failed):
    """One system failed, but its program lives and may run other systems."""


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

        Raises:
          Failed: with one line about what went wrong.
        """
        message = {"settings": system.settings, "stride": system.stride}
        message |= {"warmup": warmup, "steps": steps}
        answers = self.ask(message, f"{warmup} + {steps} steps of {system.name}")
        taken = sum(a["steps"] for a in answers)
        first, *_, last = self.speakers[0].marks
        up, down = _per_step(first, last, taken)
        return {
            **answers[0],
            "seconds": max(a["seconds"] for a in answers),
            "steps": taken,
            "up": up,
            "down": down,
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
            at_mark=self._network.traffic,
        )
        self._programs.append(program)
        if speaks:
            self.speakers.append(program)

    def address(self, host: str) -> str:
        """Where the family's process on a host listens."""
        return self._network.address(host, self._port)

    @property
    def interface(self) -> str:
        """Name of the network interface of each host."""
        return self._network.interface

    def spec(self, *jobs: str) -> dict[str, list[str]]:
        """The addresses of jobs, as TF_CONFIG has them."""
        hosts = {"chief": ("chief",), "worker": _WORKER_HOSTS, "ps": ("ps0", "ps1")}
        return {job: [self.address(host) for host in hosts[job]] for job in jobs}


Start = Callable[[Family], None]


def parameter_servers(server: str, chief: str) -> Start:
    """Starts a chief, which answers, workers and ps, by the names of their modules."""

    def start(family: Family) -> None:
        spec = family.spec("chief", "worker", "ps")
        for job, addresses in reversed(spec.items()):
            for i in range(len(addresses)):
                host = "chief" if job == "chief" else f"{job}{i}"
                module = chief if job == "chief" else server
                family.spawn(module, host, _tf_config(spec, job, i), speaks=job == "chief")

    return start


def alone(module: str, *hosts: str) -> Start:
    """Starts a module on each of the hosts, by default the workers'; they do not communicate."""

    def start(family: Family) -> None:
        for i, host in enumerate(hosts or _WORKER_HOSTS):
            family.spawn(module, host, {"RANK": str(i)}, speaks=True)

    return start


def tensorflow_workers(module: str) -> Start:
    """Starts a module as each worker of a TF_CONFIG without ps."""

    def start(family: Family) -> None:
        spec = family.spec("worker")
        for i, host in enumerate(_WORKER_HOSTS):
            family.spawn(module, host, _tf_config(spec, "worker", i), speaks=True)

    return start


def torch_workers(module: str) -> Start:
    """Starts a module as each rank of a process group of PyTorch's."""

    def start(family: Family) -> None:
        address, _, port = family.address("worker0").rpartition(":")
        for i, host in enumerate(_WORKER_HOSTS):
            place = {
                "MASTER_ADDR": address,
                "MASTER_PORT": port,
                "RANK": str(i),
                "WORLD_SIZE": str(WORKERS),
                "GLOO_SOCKET_IFNAME": family.interface,
            }
            family.spawn(module, host, place, speaks=True)

    return start


_TFPS = parameter_servers("tfps.serve", "benchmarks.wire.tfps_chief")

STARTS: dict[str, Start] = {
    "tfps": _TFPS,
    "traffic": _TFPS,
    "local": _TFPS,
    "alone": alone("benchmarks.wire.alone_worker"),
    "stock": parameter_servers("benchmarks.wire.stock_server", "benchmarks.wire.stock_chief"),
    "mwms": tensorflow_workers("benchmarks.wire.mwms_worker"),
    "ddp": torch_workers("benchmarks.wire.ddp_worker"),
}


class Fleet:
    """All families on one network; a context manager that ends their processes."""

    def __init__(
        self,
        network,
        folder: str,
        threads: int,
        timeout: float,
        starts: Mapping[str, Start] = STARTS,
    ):
        """Starts nothing yet.

        Args:
          network: a `hosts.Network` or `hosts.Loopback`, entered.
          folder: for the processes' logs.
          threads: compute threads of each process, the same for all systems.
          timeout: seconds that a start or a turn may take.
          starts: name of a family -> what starts its processes.
        """
        environ = _environ(threads)
        self._families = {
            name: Family(name, start, _FIRST_PORT + i, network, folder, environ, timeout)
            for i, (name, start) in enumerate(starts.items())
        }
        self._losses: collections.Counter = collections.Counter()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_) -> None:
        for family in self._families.values():
            family.end()

    def turn(self, system: System, warmup: int, steps: int) -> dict:
        """One turn of a system; see `Family.run`.

        Raises:
          Failed: what no longer answers is ended. Its family starts anew with the
            next turn, unless that was so too often.
        """
        return self._of(system, lambda family: family.run(system, warmup, steps))

    def ask(self, system: System, message: dict, what: str) -> list[dict]:
        """Sends a message to a system's family; see `Family.ask`. Raises as `turn` does."""
        return self._of(system, lambda family: family.ask(message, what))

    def pids(self, host: str) -> list[int]:
        """The processes that run on a host."""
        found = [family.pid(host) for family in self._families.values()]
        return [pid for pid in found if pid is not None]

    def _of(self, system: System, call: Callable[[Family], Any]) -> Any:
        if self._losses[system.family] >= _LOSSES:
            raise Failed(f"processes of {system.family} were lost {_LOSSES} times; given up")
        family = self._families[system.family]
        try:
            return call(family)
        except Failed as e:
            # If other workers take part, they now wait for this worker in the middle of a step.
            if not isinstance(e, Refused) or len(family.speakers) > 1:
                self._losses[system.family] += 1
                family.end()
            raise


def _per_step(before, after, steps: int) -> tuple[float | None, float | None]:
    if before is None:
        return None, None
    moved = [
        Traffic(after[h].up - before[h].up, after[h].down - before[h].down) for h in _WORKER_HOSTS
    ]
    return sum(m.up for m in moved) / steps, sum(m.down for m in moved) / steps


def _tf_config(spec: dict, job: str, index: int) -> dict[str, str]:
    config = {"cluster": spec, "task": {"type": job, "index": index}}
    return {"TF_CONFIG": json.dumps(config)}


def _environ(threads: int) -> dict[str, str]:
    """Gives all systems the same conditions: CPU, number of threads, no proxy between the hosts."""
    # gRPC would send connections to the hosts through a proxy.
    environ = {k: v for k, v in os.environ.items() if not re.fullmatch(r"(?i)\w+_proxy", k)}
    return {
        **environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TFPS_PARENT": str(os.getpid()),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }


def steps_for(seconds_per_step: float, seconds: float, at_least: int) -> int:
    """How many steps of a worker take about `seconds`."""
    return max(at_least, round(seconds / max(seconds_per_step, 1e-3)))


def step_time(answer: dict) -> float:
    """Seconds that one step of one worker takes while all workers train."""
    return answer["seconds"] * WORKERS / answer["steps"]
