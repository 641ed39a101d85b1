"""Which batches of a dataset are dealt out, given back and done: numbers only."""

import bisect
import dataclasses
import math


@dataclasses.dataclass(eq=False)
class Lease:
    """Consecutive batches of a pass that are somebody's work.

    Attributes:
      turn: number of the pass.
      begin: number of the first batch in the pass.
      count: how many batches the work answers for; fewer once some are given back, or the pass
        was found to end before.
    """

    turn: int
    begin: int
    count: int


class Passes:
    """The passes over one dataset, whose length need not be known.

    Batches are dealt out in order. Those that are given back are dealt out again before new ones,
    by their number.

    Attributes:
      turn: number of the present pass; -1 before the first.
      cursor: number of the first batch of the present pass that was never dealt out.
      end: how many batches the present pass has, once that was found out; infinite before.
    """

    def __init__(self) -> None:
        """Starts before the first pass."""
        self.turn = -1
        self.forget()

    def forget(self) -> None:
        """Ends the present pass, and drops what was given back."""
        self.cursor, self.end = 0, 0.0
        self._found = True
        self._gaps: list[tuple[int, int, int]] = []  # (pass, begin, end)
        self._open: set[Lease] = set()

    def restart(self) -> None:
        """Begins the next pass."""
        self.turn += 1
        self.cursor, self.end, self._found = 0, math.inf, False

    def resume(self, turn: int, cursor: int, gaps: list[tuple[int, int, int]]) -> None:
        """Goes on in a pass.

        Args:
          turn: number of the pass.
          cursor: number of the next batch.
          gaps: (pass, begin, end) of batches before that one that are to be dealt out before.
        """
        self.forget()
        self.turn, self.cursor, self.end = turn, cursor, math.inf
        self._gaps = sorted(gaps)

    def limit(self, end: int) -> None:
        """Notes that the present pass has at most `end` batches."""
        self.end = min(self.end, end)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to deal out until the next pass begins."""
        return not self._gaps and self.cursor >= self.end

    @property
    def is_empty(self) -> bool:
        """Whether the present pass is over and had no batch at all."""
        return self.is_over and not self._found

    @property
    def outstanding(self) -> int:
        """How many batches are dealt out and not settled."""
        return sum(one.count for one in self._open)

    @property
    def unsettled(self) -> list[tuple[int, int, int]]:
        """(pass, begin, end) of what was dealt out or given back, and is not done."""
        open_ = [(one.turn, one.begin, one.begin + one.count) for one in self._open if one.count]
        return sorted([*self._gaps, *open_])

    def deal(self, most: float) -> Lease:
        """The next batches, at most `most`; there are some unless `is_over`."""
        if not self._gaps:
            lease = Lease(self.turn, self.cursor, int(min(most, self.end - self.cursor)))
            self.cursor += lease.count
        else:
            turn, begin, end = self._gaps.pop(0)
            lease = Lease(turn, begin, int(min(most, end - begin)))
            if begin + lease.count < end:
                self._gaps.insert(0, (turn, begin + lease.count, end))
        self._open.add(lease)
        return lease

    def repeat(self, lease: Lease, index: int, count: int = 1) -> Lease:
        """A lease of some batches that another lease has as well."""
        again = Lease(lease.turn, lease.begin + index, count)
        self._open.add(again)
        return again

    def done(self, lease: Lease, found: int) -> int:
        """Settles a lease; returns how many of its batches there were not.

        Args:
          lease: of `deal` or `repeat`.
          found: how many of its batches there were.
        """
        self._open.discard(lease)
        missing, lease.count = lease.count - found, found
        self._found |= found > 0
        if missing > 0:
            self._ends(lease.turn, lease.begin + found)
        return missing

    def _ends(self, turn: int, end: int) -> None:
        """Notes that a pass has no batch from `end` on."""
        if turn == self.turn:
            self.end = min(self.end, end)
        cut = [(t, b, min(e, end) if t == turn else e) for t, b, e in self._gaps]
        self._gaps = [(t, b, e) for t, b, e in cut if b < e]

    def give_back(self, lease: Lease, begin: int) -> int:
        """Settles a lease, and makes its batches from the index `begin` on be dealt out again.

        Returns:
          How many batches those are.
        """
        self._open.discard(lease)
        first, last = lease.begin + begin, lease.begin + lease.count
        if first >= last:
            return 0
        lease.count = begin
        self._insert(lease.turn, first, last)
        if lease.turn == self.turn and self.end < last:
            self._ends(self.turn, int(self.end))
        return last - first

    def _insert(self, turn: int, begin: int, end: int) -> None:
        at = bisect.bisect(self._gaps, (turn, begin, end))
        self._gaps.insert(at, (turn, begin, end))
        joined: list[tuple[int, int, int]] = []
        for gap in self._gaps:
            if joined and joined[-1][0] == gap[0] and joined[-1][2] == gap[1]:
                joined[-1] = (gap[0], joined[-1][1], gap[2])
            else:
                joined.append(gap)
        self._gaps = joined
