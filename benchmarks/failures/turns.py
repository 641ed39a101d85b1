"""Turns of `benchmarks.recovery`: a job, of which one task is killed or frozen once."""

import itertools
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from benchmarks.failures import tasks

_FROZEN = 20.0  # s


class Case(NamedTuple):
    """What happens to whom.

    Attributes:
      name: in the table.
      victim: the task.
      signum: what it gets; SIGSTOP is followed by SIGCONT after 20 s.
      system: whose coordinator, or who starts the processes: tfps, stock, or torchrun.
    """

    name: str
    victim: str
    signum: signal.Signals = signal.SIGKILL
    system: str = "tfps"


CASES = (
    Case("worker killed", "worker 1"),
    Case("worker killed, TensorFlow's coordinator", "worker 1", system="stock"),
    Case("worker killed, torchrun", "worker 1", system="torchrun"),
    Case("worker frozen for 20 s", "worker 1", signal.SIGSTOP),
    Case("ps killed", "ps 1"),
    Case("chief killed", "chief 0"),
)


class Found(NamedTuple):
    """What a turn has shown; None for what did not happen or cannot be seen.

    Attributes:
      noticed: s from the signal to the chief's knowing of it.
      pause: s, the longest time from the end of a step to the end of the next one, of any worker.
      back: s from the signal until the task takes part again.
      updates: updates on the servers minus steps that were asked for, at the end.
    """

    noticed: float | None
    pause: float | None
    back: float | None
    updates: int | None


class Turn:
    """One job, of which one task gets one signal."""

    def __init__(
        self,
        case: Case,
        folder: pathlib.Path,
        before: float = 12.0,
        snapshot_every: float = 5.0,
        timeout: float = 240.0,
    ):
        """Starts the job.

        Args:
          case: what happens to whom.
          folder: for what the job writes.
          before: s of training before it happens.
          snapshot_every: s from one snapshot to the next.
          timeout: s that all of it may take.
        """
        self._case, self._before, self._timeout = case, before, timeout
        self._events, self._enough = folder / "events", folder / "enough"
        self._log = (folder / "log").open("w")
        self._job = subprocess.Popen(
            [sys.executable, "-m", *self._command(folder, snapshot_every)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._said: list[tuple[float, str]] = []

    def _command(self, folder: pathlib.Path, snapshot_every: float) -> list[str]:
        """The module that starts the job's processes, with its arguments."""
        system = self._case.system
        files = [f"--events={self._events}", f"--enough={self._enough}"]
        if system == "torchrun":
            start = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            start += ["--max-restarts=3", "-m", "benchmarks.failures.torchrun_job"]
            return [*start, *files, f"--checkpoint={folder}/state.pt", f"--every={snapshot_every}"]
        if system == "tfps":
            files += [f"--snapshots={folder}/snapshots", f"--snapshot_every={snapshot_every}"]
        start = ["launch", "local", "--workers=2", "--ps=2", "--settle=3", "--", "python"]
        return [*start, "-m", "benchmarks.failures.job", f"--system={system}", *files]

    def run(self) -> Found:
        """Runs it to its end.

        Raises:
          RuntimeError: the job failed, or took longer than `timeout`.
        """
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        case, deadline = self._case, time.monotonic() + self._timeout
        try:
            self._wait(lambda: self._after(0.0, "steps"), deadline)
            time.sleep(self._before)
            at = time.monotonic()
            tasks.send(self._job.pid, case.victim, case.signum)
            if case.signum == signal.SIGSTOP:
                time.sleep(_FROZEN)
                tasks.send(self._job.pid, case.victim, signal.SIGCONT)
            self._wait(lambda: self._is_over(at), deadline)
            time.sleep(5.0)  # Whatever it holds up after that belongs to it.
            self._enough.touch()
            self._wait(lambda: self._after(at, "updates"), deadline)
            return self._found(at)
        finally:
            self._job.terminate()
            self._job.wait()
            reader.join(5.0)
            self._log.close()

    def _read(self) -> None:
        assert self._job.stdout is not None
        for line in self._job.stdout:
            self._said.append((time.monotonic(), line))
            self._log.write(line)

    def _wait(self, until, deadline: float) -> None:
        while not until():
            if self._job.poll() is not None or time.monotonic() > deadline:
                ended = self._job.poll()
                why = "took too long" if ended is None else f"ended with {ended}"
                raise RuntimeError(f"{self._case.name}: the job {why}; see {self._log.name}")
            time.sleep(0.05)

    def _all(self) -> list[tuple[float, str]]:
        if not self._events.exists():
            return []
        lines = self._events.read_text().splitlines()
        return [(float(at), what) for at, _, what in (line.partition(" ") for line in lines)]

    def _after(self, at: float, what: str) -> list[tuple[float, str]]:
        return [(t, event) for t, event in self._all() if t > at and event.startswith(what)]

    def _is_over(self, at: float) -> bool:
        """Whether the task takes part again, as far as that can be seen."""
        if self._case.system == "stock":
            return time.monotonic() > at + 20.0
        if self._case.victim.startswith("worker"):
            return bool(self._after(at, f"back {self._case.victim}"))
        return self._back(at) is not None

    def _back(self, at: float) -> float | None:
        """When a ps or chief was back: a step has ended, and a line said that training goes on."""
        marks = {"ps": "training goes on from the snapshot", "chief": "snapshots: goes on from"}
        mark = marks[self._case.victim.split()[0]]
        said = [t for t, line in self._said if t > at and mark in line]
        steps = [t for t, _ in self._after(said[0], "steps")] if said else []
        return steps[0] if steps else None

    def _found(self, at: float) -> Found:
        victim = self._case.victim
        if victim.startswith("worker"):
            noticed = [t for t, _ in self._after(at, f"lost {victim}")]
            back = [t for t, _ in self._after(at, f"back {victim}")]
        else:
            mark = " waiting up to " if victim.startswith("ps") else "is started again"
            noticed = [t for t, line in self._said if t > at and mark in line]
            back = [t for t in [self._back(at)] if t is not None]
        ends = [t for t, _ in self._after(at - 1.0, "steps")]
        until = back[0] if back else at + 20.0
        pauses = [b - a for a, b in itertools.pairwise(ends) if b >= at and a <= until + 1.0]
        said = [event.split() for _, event in self._all()]
        counts = {words[0]: words[1] for words in said if words[0] in ("scheduled", "updates")}
        return Found(
            noticed[0] - at if noticed else None,
            max(pauses, default=None),
            back[0] - at if back else None,
            int(counts["updates"]) - int(counts["scheduled"]),
        )


def table(found: dict[str, list[Found]]) -> str:
    """The medians, with the spread, as Markdown."""

    def cell(values: list[float | None]) -> str:
        known = [v for v in values if v is not None]
        if not known:
            return ""
        middle = f"{statistics.median(known):.2f} s"
        return middle + (f" ({min(known):.2f} to {max(known):.2f})" if len(known) > 1 else "")

    head = ("what happens", "noticed after", "longest pause", "takes part again", "updates")
    lines = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|"]
    for name, turns in found.items():
        cells = [cell([getattr(t, f) for t in turns]) for f in ("noticed", "pause", "back")]
        updates = ", ".join(f"{t.updates:+d}" if t.updates else "0" for t in turns)
        lines.append(f"| {name} | {' | '.join(cells)} | {updates} |")
    return "\n".join(lines)
