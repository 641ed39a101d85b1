"""Whether every batch was applied exactly once on every ps, as a ledger says.

The files are those of `ledger.py` and `store/ledger_file.py`. What the checker concludes rests on
what the ps have written; of the chief it takes which batches a unit has, and what was given up.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tfps import errors, exit_codes
from tfps.store import ledger_file, mailbox
from tfps.store.ledger_file import Line
from tfps.training.ledger import chiefs

# How many faults are named.
_NAMED = 20

# A batch: (fit, dataset, pass, index).
Batch = tuple[int, int, int, int]


class Verdict(NamedTuple):
    """What a ledger comes to.

    Attributes:
      lines: for the user; the first one is the verdict.
      code: one of `exit_codes`.
    """

    lines: list[str]
    code: int


@dataclasses.dataclass
class _Run:
    """A run of a policy, by what the chief has written.

    Attributes:
      key: (chief, run).
      fit: number of the `fit`.
      lives: per worker, its life at the beginning.
      servers: indices of the ps that pushes concern.
      rounds: whether pushes are added up.
      drops: reasons for which units may be dropped.
      units: unit -> its batches.
      pushed: number of a push -> the unit, where they differ.
      dropped: unit -> why.
      ended: whether it came to its end.
      stopped: whether a callback stopped training.
      error: the error that ended it, or None.
      applied: unit -> ps -> what the ps has done with it, each time.
      records: unit -> the numbers of examples that were told.
    """

    key: tuple[int, int]
    fit: int
    lives: list[int]
    servers: list[int]
    rounds: bool
    drops: list[str]
    units: dict[int, list[Batch]] = dataclasses.field(default_factory=dict)
    pushed: dict[int, int] = dataclasses.field(default_factory=dict)
    dropped: dict[int, str] = dataclasses.field(default_factory=dict)
    ended: bool = False
    stopped: bool = False
    error: str | None = None
    applied: dict[int, dict[int, list[str]]] = dataclasses.field(default_factory=dict)
    records: dict[int, set[int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Program:
    """The runs of a program, of all chiefs that went on with it.

    Attributes:
      runs: that count.
      cuts: snapshot -> how many of the runs were before it.
      ends: (fit, dataset, pass) -> the index after its last batch.
      whole: whether its beginning is in the ledger.
      undone: (ps, snapshot, runs) of what was lost and trained on again.
    """

    runs: list[_Run] = dataclasses.field(default_factory=list)
    cuts: dict[str, int] = dataclasses.field(default_factory=dict)
    ends: dict[tuple[int, int, int], int] = dataclasses.field(default_factory=dict)
    whole: bool = True
    undone: list[tuple[list[int], str, list[_Run]]] = dataclasses.field(default_factory=list)

    def back(self, snapshot: str, servers: list[int]) -> None:
        """Everything since a snapshot does not count."""
        count = self.cuts[snapshot]
        self.undone.append((servers, snapshot, self.runs[count:]))
        self.runs = self.runs[:count]


def check(folder: str | os.PathLike) -> Verdict:
    """Checks a ledger.

    Args:
      folder: what `Trainer(ledger=...)` was given. Where the ps do not share it, their files are to
        be brought there.

    Raises:
      ConfigError: there is no ledger, or a file is missing.
      DataError: a file is damaged.
    """
    folder = os.fspath(folder)
    numbers = chiefs(folder) if os.path.isdir(folder) else []
    programs = _programs(folder, numbers)
    runs = [run for program in programs for run in _all_runs(program)]
    if not runs:
        raise errors.ConfigError(
            f"{folder} has no ledger of any training; give the folder of Trainer(ledger=...)"
        )
    return _Check(folder, programs, runs).verdict()


def _all_runs(program: _Program) -> Iterator[_Run]:
    for _, _, runs in program.undone:
        yield from runs
    yield from program.runs


# What the chief has written.


def _programs(folder: str, numbers: list[int]) -> list[_Program]:
    programs: list[_Program] = []
    for number in numbers:
        own = _Program()
        for event in _events(os.path.join(folder, f"chief-{number}.jsonl")):
            if event["event"] == "resumed":
                own = _resumed(programs, event["snapshot"], own)
            else:
                _take_in(own, number, event)
        programs.append(own)
    return programs


def _events(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    for i, line in enumerate(lines[:-1]):  # A chief that was killed may leave half a line.
        try:
            yield json.loads(line)
        except ValueError as e:
            raise errors.DataError(
                f"{path} is damaged in line {i + 1}; this ledger says nothing, keep another one"
            ) from e


def _resumed(programs: list[_Program], snapshot: str, own: _Program) -> _Program:
    """The program that goes on from a snapshot; it is taken out of the list."""
    for i in reversed(range(len(programs))):
        if snapshot in programs[i].cuts:
            found = programs.pop(i)
            found.back(snapshot, [])
            return found
    own.whole = False
    own.cuts[snapshot] = 0
    return own


def _take_in(program: _Program, chief: int, event: dict[str, Any]) -> None:
    kind = event["event"]
    run = program.runs[-1] if program.runs else None
    if kind == "run":
        names = "fit", "lives", "servers", "rounds", "drops"
        program.runs.append(_Run((chief, event["run"]), *(event[name] for name in names)))
    elif kind == "cut":
        program.cuts[event["snapshot"]] = len(program.runs)
    elif kind == "back":
        program.back(event["snapshot"], event["servers"])
    elif run is not None:
        _note(program, run, event)


def _note(program: _Program, run: _Run, event: dict[str, Any]) -> None:
    """Takes in what is said of a run."""
    kind = event["event"]
    if kind == "gave":
        first, count = event["unit"], event["count"]
        batches = _batches(run.fit, event["ranges"])
        size = 1 if count == len(batches) else len(batches)
        for i in range(count):
            run.units[first + i] = batches[i * size : (i + 1) * size]
    elif kind == "pushes":
        run.pushed[event["number"]] = event["unit"]
    elif kind == "dropped":
        run.dropped[event["unit"]] = event["why"]
    elif kind == "ends":
        for dataset, turn, _, end in event["ranges"]:
            key = run.fit, dataset, turn
            program.ends[key] = min(end, program.ends.get(key, end))
    elif kind == "ended":
        run.ended, run.stopped = True, event["stopped"]
    elif kind == "broke":
        run.error = event["error"]


def _batches(fit: int, ranges: Iterable[Iterable[int]]) -> list[Batch]:
    return [(fit, d, turn, i) for d, turn, begin, end in ranges for i in range(begin, end)]


# What the ps have written, and what follows.


class _Check:
    """Goes through a ledger once, and collects what is wrong."""

    def __init__(self, folder: str, programs: list[_Program], runs: list[_Run]):
        self._programs, self._runs = programs, runs
        self._faults: dict[str, list[str]] = collections.defaultdict(list)
        self._counts: collections.Counter[str] = collections.Counter()
        self._refused: set[tuple] = set()  # by whatever ps
        self._servers = sorted({p for run in runs for p in run.servers})
        for p in self._servers:
            self._read(folder, p)

    def _read(self, folder: str, p: int) -> None:
        path = ledger_file.path_of(folder, p)
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                texts = file.read().split("\n")
        except OSError as e:
            raise errors.ConfigError(
                f"{path} cannot be read ({e.strerror}), so nothing is known of ps {p}; bring the "
                "file there from the host of the ps"
            ) from e
        by_run = collections.defaultdict(list)
        for text in texts:
            line = Line.of(text)
            if line is not None:
                by_run[line.chief, line.run].append(line)
            elif text:
                self._counts["torn"] += 1
        for run in self._runs:
            if p in run.servers:
                self._follow(run, p, by_run[run.key])

    def _follow(self, run: _Run, p: int, lines: list[Line]) -> None:
        """Goes through what a ps has done in a run."""
        lives, summed = list(run.lives), 0
        for line in lines:
            if line.kind == mailbox.FENCE:
                lives[line.worker] = line.life
            if line.kind > mailbox.REPEAT or not line.live:
                continue
            unit = run.pushed.get(line.unit, line.unit)
            if not line.counts:
                self._refused.add((run.key, unit, line.life))
                continue
            if line.life != lives[line.worker]:
                name = self._name(run, unit)
                self._faults["applied after its worker was fenced off"].append(f"{name} on ps {p}")
            self._counts["repeated"] += line.kind == mailbox.REPEAT and p == run.servers[0]
            run.records.setdefault(unit, set()).add(line.records)
            if line.masked:
                continue
            outcome = "applied" if line.finite else "overflow"
            run.applied.setdefault(unit, {}).setdefault(p, []).append(outcome)
            summed = 0 if line.updated else summed + line.finite
        if run.rounds and summed and run.ended:
            self._faults["added up on a ps that then applied nothing"].append(
                f"{summed} units at the end of run {run.key[1]} on ps {p}"
            )

    def verdict(self) -> Verdict:
        """What all of it comes to."""
        for run in self._runs:
            self._require_once(run)
        records = batches = 0
        for program in self._programs:
            done = self._of_program(program)
            batches += len(done)
            records += sum(
                max(run.records[unit])
                for run, unit in {(id(r), u): (r, u) for r, u in done.values()}.values()
            )
        servers = f"{len(self._servers)} ps"
        if self._faults:
            found = ", ".join(f"{len(names)} {kind}" for kind, names in self._faults.items())
            named = [f"{kind}: {n}" for kind, names in self._faults.items() for n in names]
            more = [f"and {len(named) - _NAMED} more"] if len(named) > _NAMED else []
            first = f"of {batches:,} batches on {servers}: {found}"
            return Verdict([first, *named[:_NAMED], *more], exit_codes.FAILED)
        said = [f"each of {records:,} records once on each of {servers}", *self._said()]
        if self._counts["under way"]:
            count = _number(self._counts["under way"], "unit")
            said.append(f"{count} under way when the chief was lost; start it again")
            return Verdict(["; ".join(said)], exit_codes.LOST)
        return Verdict(["; ".join(said)], exit_codes.DONE)

    def _said(self) -> Iterator[str]:
        """What else there is to say where nothing is wrong."""
        counts = self._counts
        for why in ("late", "overflow", "stopped"):
            if counts[why]:
                yield f"{_number(counts[why], 'batch', 'batches')} dropped by policy ({why})"
        if counts["repeated"]:
            yield f"{_number(counts['repeated'], 'unit')} repeated"
        if self._refused:
            yield f"{_number(len(self._refused), 'late push', 'late pushes')} refused"
        for program in self._programs:
            for servers, snapshot, runs in program.undone:
                with_ps = f"ps {', '.join(map(str, servers))}" if servers else "a chief"
                lost = _number(sum(len(run.applied) for run in runs), "unit")
                yield f"{lost} lost with {with_ps} since {snapshot}, and done again"

    def _require_once(self, run: _Run) -> None:
        """No ps has a unit twice, and all that have one agree on it."""
        for unit, by_ps in run.applied.items():
            for p, outcomes in by_ps.items():
                if len(outcomes) > 1:
                    times = f"{len(outcomes)} times on ps {p}"
                    self._faults["doubled"].append(f"{self._name(run, unit)} {times}")
            if unit not in run.units:
                self._faults["that nobody was given"].append(self._name(run, unit))
            if len(run.records[unit]) > 1:
                sizes = sorted(run.records[unit])
                self._faults["with other records when repeated"].append(
                    f"{self._name(run, unit)} of {sizes} records"
                )

    def _of_program(self, program: _Program) -> dict[Batch, tuple[_Run, int]]:
        """Each batch that was applied, with its unit."""
        done: dict[Batch, tuple[_Run, int]] = {}
        pending: dict[Batch, tuple[_Run, int]] = {}
        given_up: set[Batch] = set()
        for run in program.runs:
            for unit, batches in run.units.items():
                there = [b for b in batches if b[3] < program.ends.get(b[:3], b[3] + 1)]
                if unit in run.dropped:
                    self._drop(run, unit, run.dropped[unit], there)
                    given_up |= set(there)
                elif unit not in run.applied:
                    pending |= dict.fromkeys(there, (run, unit))
                else:
                    self._require_everywhere(run, unit)
                    for batch in there:
                        self._do(done, batch, run, unit)
        self._account(pending, done, given_up)
        self._require_all(program, {*done, *given_up, *pending})
        return done

    def _do(self, done: dict, batch: Batch, run: _Run, unit: int) -> None:
        if batch in done:
            names = f"{self._name(*done[batch])} and {self._name(run, unit)}"
            self._faults["doubled"].append(f"{_of_batch(batch)} by {names}")
        done[batch] = run, unit

    def _require_everywhere(self, run: _Run, unit: int) -> None:
        by_ps = run.applied[unit]
        if lacking := [p for p in run.servers if p not in by_ps]:
            self._lack(run, unit, f"on ps {', '.join(map(str, lacking))}")
        outcomes = {one for each in by_ps.values() for one in each}
        if "overflow" in outcomes:
            self._drop(run, unit, "overflow", run.units[unit])

    def _drop(self, run: _Run, unit: int, why: str, batches: list[Batch]) -> None:
        self._counts[why] += len(batches)
        if why not in run.drops:
            self._faults["dropped where the policy drops nothing"].append(
                f"{self._name(run, unit)} ({why})"
            )
        if why == "late" and unit in run.applied:
            self._faults["dropped and applied"].append(self._name(run, unit))

    def _account(self, pending: dict, done: dict, given_up: set) -> None:
        """Says what became of batches whose unit is on no ps, and that no other unit had."""
        for batch, (run, unit) in pending.items():
            if batch in done or batch in given_up:
                continue
            if run.stopped:
                self._counts["stopped"] += 1
            else:
                self._lack(run, unit, "on every ps")

    def _lack(self, run: _Run, unit: int, where: str) -> None:
        """Says that a unit was not applied."""
        if run.error is not None:
            self._faults[f"given up with {run.error}"].append(f"{self._name(run, unit)} {where}")
        elif not run.ended:
            self._counts["under way"] += 1
        else:
            self._faults["lost"].append(f"{self._name(run, unit)} {where}")

    def _require_all(self, program: _Program, known: set[Batch]) -> None:
        """No batch of a pass before its last one was never given out."""
        passes = collections.defaultdict(set)
        for fit, dataset, turn, index in known:
            passes[fit, dataset, turn].add(index)
        for (fit, dataset, turn), found in passes.items():
            begin = 0 if program.whole else min(found)
            for index in sorted(set(range(begin, max(found))) - found):
                batch = _of_batch((fit, dataset, turn, index))
                self._faults["lost"].append(f"{batch}, which nobody was given")

    def _name(self, run: _Run, unit: int) -> str:
        batches = run.units.get(unit, [])
        which = f" ({_of_batch(batches[0])})" if batches else ""
        return f"unit {unit} of run {run.key[1]}{which}"


def _number(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _of_batch(batch: Batch) -> str:
    fit, dataset, turn, index = batch
    return f"batch {index} of dataset {dataset}, pass {turn} of fit {fit}"
