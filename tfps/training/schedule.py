"""Who may step now: the bookkeeping under the consistency policies.

A schedule is plain Python, driven by events. It knows nothing of tensors, servers or time.
"""

import math
from typing import Protocol


class Schedule(Protocol):
    """Decides which worker may start how many steps, for one run over the data.

    The work loop calls a schedule on the chief, from one thread. For each worker the calls come in
    this order: `join` as often as the worker is considered for work, `allowance`, `started` once
    it has been given work, `finished` once that work is done. `leave` may come at any time.
    """

    def join(self, worker: int) -> None:
        """Lets a worker take part; without effect if the worker takes part already."""

    def leave(self, worker: int) -> None:
        """The worker takes no further work, and nobody has to wait for it to begin or end one.

        A push for which `due` has named the worker is reported to `pushed` in any case: if the
        worker is lost, another one makes it.
        """

    def allowance(self, worker: int) -> float:
        """How many steps the worker may start now; 0 if the worker has to wait."""

    def started(self, worker: int) -> None:
        """The worker has begun as many steps as it was allowed, or fewer."""

    def finished(self, worker: int, steps: int, weight: float) -> bool:
        """The worker has done its work.

        Args:
          worker: index; the worker may have left meanwhile.
          steps: steps that the worker took; 0 if its data had ended.
          weight: what the worker's gradients count in a weighted mean: its examples, or 0 if the
            gradients overflowed.

        Returns:
          Whether the gradients are held back on the worker until `RoundSchedule.due` names the
          worker. A schedule of a policy that is not `in_rounds` returns False; the worker has
          pushed then. In rounds, False means that the gradients came too late and are dropped.
        """


class RoundSchedule(Schedule, Protocol):
    """The schedule of a policy whose pushes are added up in rounds (`in_rounds`)."""

    def due(self) -> dict[int, float]:
        """What the servers are to apply together now.

        Returns:
          Worker -> its share in the weighted mean. The shares add up to 1. The result is empty as
          long as the round waits for a worker. Each worker that is named is reported to `pushed`.
        """

    def pushed(self, worker: int) -> None:
        """The gradients of a worker that `due` has named have reached the servers."""


class Clocks:
    """Workers that count their steps and wait for the slowest worker, if they wait at all.

    What a worker computes is applied as soon as the worker has pushed it.

    Attributes:
      bound: how many steps a worker may be ahead of the slowest one; infinite for no limit. A step
        counts from its start. So with 0 no worker starts a step before all workers have
        finished the step before.
    """

    def __init__(self, bound: float = math.inf):
        """Starts with no worker."""
        self.bound = bound
        self._done: dict[int, int] = {}

    def join(self, worker: int) -> None:
        """Lets a worker take part, level with the slowest worker, so that nobody waits for it."""
        self._done.setdefault(worker, min(self._done.values(), default=0))

    def leave(self, worker: int) -> None:
        """See `Schedule`."""
        self._done.pop(worker, None)

    def allowance(self, worker: int) -> float:
        """See `Schedule`."""
        lead = self._done[worker] - min(self._done.values())
        return max(0, self.bound - lead + 1)

    def started(self, worker: int) -> None:
        """See `Schedule`; a clock moves when a step ends."""

    def finished(self, worker: int, steps: int, weight: float) -> bool:
        """See `Schedule`."""
        del weight
        if worker in self._done:
            self._done[worker] += steps
        return False


class Rounds:
    """Workers that step together.

    In a round, every worker computes once, on the same parameters. When enough workers have
    computed, their gradients are applied as one update and the next round begins. Gradients of
    this round that come later are dropped.

    Attributes:
      backups: how many workers a round does not wait for.
      steps: how many steps a worker takes in a round.
      number: of the present round.
    """

    def __init__(self, backups: int = 0, steps: int = 1):
        """Starts with no worker, in round 0."""
        self.backups = backups
        self.steps = steps
        self.number = 0
        self._members: set[int] = set()
        self._computing: dict[int, int] = {}  # worker -> its round
        self._held: dict[int, float] = {}  # worker -> weight
        self._pushing: set[int] = set()
        self._most = 0  # the largest number of members that there has been

    def join(self, worker: int) -> None:
        """See `Schedule`."""
        self._members.add(worker)
        self._most = max(self._most, len(self._members))

    def leave(self, worker: int) -> None:
        """See `Schedule`."""
        self._members.discard(worker)
        self._computing.pop(worker, None)
        self._held.pop(worker, None)

    def allowance(self, worker: int) -> float:
        """See `Schedule`."""
        waits = worker in self._computing or worker in self._held or self._pushing
        return 0 if waits or worker not in self._members else self.steps

    def started(self, worker: int) -> None:
        """Notes that the worker computes for the present round."""
        self._computing[worker] = self.number

    def finished(self, worker: int, steps: int, weight: float) -> bool:
        """See `Schedule`; False if the gradients came too late for their round."""
        began = self._computing.pop(worker, None)
        if not steps or began != self.number or self._pushing:
            return False
        self._held[worker] = weight
        return True

    def due(self) -> dict[int, float]:
        """See `RoundSchedule`."""
        if self._pushing or not self._held or len(self._held) < self._enough():
            return {}
        total = sum(self._held.values())
        equal = 1 / len(self._held)
        shares = {w: weight / total if total else equal for w, weight in self._held.items()}
        self._pushing = set(shares)
        self._held = {}
        return shares

    def pushed(self, worker: int) -> None:
        """See `RoundSchedule`; the round ends with the last of its workers."""
        self._pushing.discard(worker)
        if not self._pushing:
            self.number += 1

    def _enough(self) -> int:
        # When some workers have run out of data, a round still waits for those that are left.
        return max(1, min(len(self._members), self._most - self.backups))
