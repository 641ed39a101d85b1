"""What each worker has been given, and what of it is lost with the worker.

It is plain bookkeeping: it knows nothing of tensors, servers or time.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Works of a worker whose push may still be outstanding though they are reported: with `overlap` 2 a
# worker pushes two calls later.
_PIPELINE = 3


class Redo(NamedTuple):
    """Units that another worker is to do again, in one call.

    Attributes:
      work: whose batches they are.
      begin: index in the work of the first one.
      count: how many.
      number: of the first one, which it keeps.
      has: the ps that have these units already.
      counts: whether what they do to the metrics has not been counted yet.
      open: whether the call in which they were lost counts as one that has not ended.
    """

    work: Any
    begin: int
    count: int  # type: ignore[assignment]  # A tuple has a method of this name.
    number: int
    has: frozenset[int]
    counts: bool
    open: bool

    def known(self, repeated: Mapping[int, int]) -> "Redo":
        """The redo, once the worker that was to do it is lost.

        Args:
          repeated: ps -> the number of the last repeat that it has of this life of the worker.
        """
        return self._replace(has=self.has | {p for p, n in repeated.items() if n == self.number})


class Loss(NamedTuple):
    """What is lost with a worker.

    Attributes:
      redo: what another worker is to do again.
      back: (work, index of the first batch that was not trained on), for every work that is open.
    """

    redo: list[Redo]
    back: list[tuple[Any, int]]


@dataclasses.dataclass
class _Given:
    """A work that a worker was given.

    Attributes:
      number: of the first unit.
      units: how many units the work has.
      batches: how many batches a unit has.
      work: the work.
      reported: whether its report has come.
      open: whether the work loop still waits for its call.
    """

    number: int
    units: int
    batches: int
    work: Any
    reported: bool = False
    open: bool = True


class GivenWorks:
    """The works of one life of each worker, as long as something of them may be lost."""

    def __init__(self, num_workers: int):
        """Starts with workers that have nothing."""
        self._given: list[collections.deque[_Given]] = [
            collections.deque() for _ in range(num_workers)
        ]

    def give(self, worker: int, number: int, work: Any, exchange: bool = False) -> None:
        """Notes that a worker was given a work.

        Args:
          worker: index.
          number: of its first unit. The numbers of a worker grow.
          work: a `feeds.Work`.
          exchange: whether all batches of the work are one unit (an exchange of `LocalSteps`).
        """
        units, batches = (1, work.count) if exchange else (work.count, 1)
        self._given[worker].append(_Given(number, units, batches, work))

    def found(self, worker: int, work: Any, count: int) -> None:
        """Notes that a work has only so many batches, because its dataset has ended.

        Args:
          worker: index.
          work: that the worker was given.
          count: how many batches there were.
        """
        for one in self._given[worker]:
            if one.work is work:
                one.units = -(-count // one.batches)
                one.batches = min(one.batches, max(1, count))

    def done(self, worker: int, works: Sequence[Any], reported: bool) -> None:
        """Notes that a call has ended.

        Args:
          worker: index.
          works: that were trained on in the call, or in calls before; they are not open any more.
          reported: whether the reports of all calls until now have come.
        """
        given = self._given[worker]
        ended = set(map(id, works))
        for one in given:
            if id(one.work) in ended:
                one.open = False
        if not reported:
            return
        for one in given:
            one.reported = one.reported or not one.open
        while len(given) > _PIPELINE and given[0].reported:
            given.popleft()

    def settled(self, worker: int) -> None:
        """Notes that the worker has pushed and reported all that it was given."""
        self._given[worker].clear()

    def unreported(self, worker: int) -> int:
        """How many works there are whose reports have not come."""
        return sum(not one.reported for one in self._given[worker])

    def lose(self, worker: int, last: Mapping[int, int]) -> Loss:
        """What is lost with a worker; it has nothing any more.

        Args:
          worker: index.
          last: ps -> the number of the last unit that it has of this life of the worker.
        """
        redo, back = [], []
        for one in self._given[worker]:
            known = 0
            for i in range(one.units):
                has = frozenset(p for p, n in last.items() if n >= one.number + i)
                if not has and not one.reported:
                    break
                known = i + 1
                if len(has) == len(last) and one.reported:
                    continue
                begin = i * one.batches
                redo.append(
                    Redo(
                        one.work,
                        begin,
                        one.batches,
                        one.number + i,
                        has,
                        counts=not one.reported,
                        open=one.open,
                    )
                )
            back.append((one.work, known * one.batches))
        self.settled(worker)
        return Loss(redo, back)
