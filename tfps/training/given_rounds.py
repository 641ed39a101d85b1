"""What each worker has been given in a round, and what of it is lost with the worker.

It is to policies in rounds what `GivenWorks` is to the others, and as plain.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfps.training.given import Loss, Redo


@dataclasses.dataclass
class RoundWork:
    """What a worker does in a round.

    Attributes:
      work: its batch, or the batches of its local steps.
      number: of the (first) step.
      push: number of the push; None before the round is due.
      share, expected: of the push.
    """

    work: Any
    number: int
    push: int | None = None
    share: float = 0.0
    expected: int = 0


class GivenRounds:
    """The work of each worker in the present round, and works of lost workers to be repeated."""

    def __init__(self) -> None:
        """Starts with workers that have nothing."""
        self._given: dict[int, RoundWork] = {}
        self._lost: dict[int, RoundWork] = {}  # by the number of the push

    def give(self, worker: int, number: int, work: Any) -> None:
        """Notes that a worker was given a work, and the number of its (first) step."""
        self._given[worker] = RoundWork(work, number)

    def due(self, worker: int, push: int, share: float, expected: int) -> RoundWork:
        """Notes that a worker pushes; returns its work."""
        held = self._given[worker]
        held.push, held.share, held.expected = push, share, expected
        return held

    def take(self, worker: int) -> RoundWork | None:
        """Returns what a worker has been given, which has nothing any more."""
        return self._given.pop(worker, None)

    def lose(self, worker: int, last: Mapping[int, int]) -> Loss:
        """What is lost with a worker; it has nothing any more.

        Args:
          worker: index.
          last: ps -> the number of the last push that it has of this life of the worker.
        """
        held = self.take(worker)
        if held is None:
            return Loss([], [])
        if held.push is None:
            return Loss([], [(held.work, 0)])
        has = frozenset(p for p, n in last.items() if n >= held.push)
        if len(has) == len(last):
            return Loss([], [])
        self._lost[held.push] = held
        redo = Redo(held.work, 0, held.work.count, held.push, has, counts=False, open=False)
        return Loss([redo], [])

    def lost(self, push: int) -> RoundWork:
        """The work of a push that is to be repeated."""
        return self._lost[push]
