"""The chief's part of the ledger: what each unit is, and what becomes of runs.

In the folder, chief n appends to `chief-n.jsonl`, and ps p to `ps-p.log` (`store/ledger_file.py`).
What a ps writes says which unit it has applied; what the chief writes says which batches that unit
has. `ledger_check.py` puts the two together.
"""

import json
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from tfps import errors
from tfps.training.feeds import Range

_CHIEF = re.compile(r"chief-(\d+)\.jsonl")


class Ledger:
    """Writes down what the chief gives out; without a folder it writes nothing.

    Attributes:
      folder: absolute path, or None.
    """

    def __init__(self, folder: str | os.PathLike | None):
        """Touches no file before the first `fit`.

        Args:
          folder: which every ps can write to, on its host, by the same path; None for no ledger.
        """
        self.folder = None if folder is None else os.path.abspath(os.fspath(folder))
        self.chief = self.run = self._fit = 0
        self._file: Any = None

    def _open(self) -> None:
        assert self.folder is not None
        try:
            os.makedirs(self.folder, exist_ok=True)
            while self._file is None:
                self.chief = 1 + max(chiefs(self.folder), default=0)
                try:
                    self._file = open(self._path, "x", encoding="utf-8")  # noqa: SIM115
                except FileExistsError:
                    continue
        except OSError as e:
            raise errors.ConfigError(
                f"ledger={self.folder!r} cannot be written ({e.strerror}); give a folder that the "
                "chief and every ps can write to"
            ) from e

    @property
    def _path(self) -> str:
        return os.path.join(self.folder or "", f"chief-{self.chief}.jsonl")

    def _write(self, event: str, **content: Any) -> None:
        if self.folder is None:
            return
        if self._file is None:
            self._open()
        self._file.write(json.dumps({"event": event, **content}) + "\n")
        self._file.flush()

    def begin_fit(self, number: int | None = None) -> None:
        """Notes that a `fit` begins.

        Args:
          number: of the `fit` in the program; None to count on.

        Raises:
          ConfigError: the folder cannot be written.
        """
        self._fit = self._fit + 1 if number is None else number
        self._write("fit", number=self._fit)

    def begin_run(
        self, lives: Sequence[int], servers: Sequence[int], rounds: bool, drops: Collection[str]
    ) -> tuple[int, int]:
        """Notes that workers begin to follow a policy; returns (chief, run).

        Args:
          lives: per worker, the number of its life.
          servers: indices of the ps that pushes concern.
          rounds: whether pushes are added up in rounds.
          drops: reasons for which the policy may drop a unit: "late", "overflow".
        """
        self.run += 1
        self._write(
            "run", run=self.run, fit=self._fit, lives=list(lives), servers=list(servers),
            rounds=rounds, drops=sorted(drops),
        )  # fmt: skip
        return self.chief, self.run

    def end_run(self, stopped: bool) -> None:
        """Notes the end of a run in which nothing is outstanding.

        Args:
          stopped: whether a callback stopped training, so that batches were dropped.
        """
        self._write("ended", run=self.run, stopped=stopped)

    def break_run(self, error: BaseException) -> None:
        """Notes that a run ends with an error."""
        self._write("broke", run=self.run, error=type(error).__name__)

    def gave(self, worker: int, number: int, ranges: Sequence[Range], count: int = 1) -> None:
        """Notes what a worker was given.

        Args:
          worker: index.
          number: of the first unit.
          ranges: its batches.
          count: how many units these are.
        """
        self._write("gave", worker=worker, unit=number, count=count, ranges=ranges)

    def pushes(self, number: int, of: int) -> None:
        """Notes that a unit is pushed under another number, because its round is due."""
        self._write("pushes", unit=of, number=number)

    def dropped(self, number: int, why: str) -> None:
        """Notes that the policy has dropped a unit."""
        self._write("dropped", unit=number, why=why)

    def ends(self, ranges: Sequence[Range]) -> None:
        """Notes that datasets were found to end at the ends of these ranges."""
        self._write("ends", ranges=ranges)

    def lost(self, worker: int, life: int) -> None:
        """Notes that a worker is fenced off; `life` is its next one."""
        self._write("lost", worker=worker, life=life)

    def cut(self, snapshot: str) -> None:
        """Notes that a snapshot is taken, which may never be complete."""
        self._write("cut", snapshot=snapshot)

    def back(self, snapshot: str, servers: Collection[int]) -> None:
        """Notes that training goes back to a snapshot, because these ps were lost."""
        self._write("back", snapshot=snapshot, servers=sorted(servers))

    def resumed(self, snapshot: str) -> None:
        """Notes that this chief goes on from a snapshot of one before."""
        self._write("resumed", snapshot=snapshot)


def chiefs(folder: str) -> list[int]:
    """The numbers of the chiefs that have written to a folder, in their order."""
    found = [_CHIEF.fullmatch(name) for name in os.listdir(folder)]
    return sorted(int(match[1]) for match in found if match)
