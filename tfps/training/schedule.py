"""Who may step now: the bookkeeping under the consistency policies.

Plain Python, driven by events: a worker joins or leaves, starts steps, finishes
them. Nothing here knows of tensors, servers or time.
"""

import math


class Clocks:
    """Workers that count their steps and wait for the slowest, if for anyone.

    What a worker computes is applied as soon as it is done.

    Attributes:
      bound: how many steps a worker may be ahead of the slowest one; infinite for
        no limit. A step counts from its start, so with 0 nobody starts a step
        before everybody has finished the one before.
    """

    def __init__(self, bound: float = math.inf):
        self.bound = bound
        self._done: dict[int, int] = {}

    def join(self, worker: int) -> None:
        """Lets a worker take part; it starts level with the slowest, so it holds up nobody."""
        self._done.setdefault(worker, min(self._done.values(), default=0))

    def leave(self, worker: int) -> None:
        """Nobody waits for this worker any more."""
        self._done.pop(worker, None)

    def allowance(self, worker: int) -> float:
        """How many steps the worker may start now; 0: it has to wait."""
        lead = self._done[worker] - min(self._done.values())
        return max(0, self.bound - lead + 1)

    def started(self, worker: int) -> None:
        """The worker began as many steps as it was allowed, or fewer."""

    def finished(self, worker: int, steps: int, weight: float) -> bool:
        """The worker is done.

        Args:
          worker: index; it may have left meanwhile.
          steps: that it took.
          weight: of what it computed, examples.

        Returns:
          Whether what it computed is held back until `due` names it.
        """
        del weight
        if worker in self._done:
            self._done[worker] += steps
        return False

    def due(self) -> dict[int, float]:
        """Nothing is ever held back."""
        return {}

    def pushed(self, worker: int) -> None:
        """Never called: nothing is held back."""


class Rounds:
    """Workers that step together.

    In a round, every worker computes once, on the same parameters. When enough
    have, what they computed is applied as one update, and the next round begins;
    what comes later from a worker of this round is dropped.

    Attributes:
      backups: how many workers a round does not wait for.
      steps: that a worker takes in a round.
      number: of the present round.
    """

    def __init__(self, backups: int = 0, steps: int = 1):
        self.backups = backups
        self.steps = steps
        self.number = 0
        self._members: set[int] = set()
        self._computing: dict[int, int] = {}  # worker -> its round
        self._held: dict[int, float] = {}  # worker -> weight
        self._pushing: set[int] = set()
        self._most = 0  # members that there ever were together

    def join(self, worker: int) -> None:
        """Lets a worker take part from now on."""
        self._members.add(worker)
        self._most = max(self._most, len(self._members))

    def leave(self, worker: int) -> None:
        """Nobody waits for this worker any more."""
        self._members.discard(worker)
        self._computing.pop(worker, None)
        self._held.pop(worker, None)
        self.pushed(worker)

    def allowance(self, worker: int) -> int:
        """How many steps the worker may start now; 0: it has to wait."""
        waits = worker in self._computing or worker in self._held or self._pushing
        return 0 if waits or worker not in self._members else self.steps

    def started(self, worker: int) -> None:
        """The worker computes for the present round."""
        self._computing[worker] = self.number

    def finished(self, worker: int, steps: int, weight: float) -> bool:
        """The worker has computed; see `Clocks.finished`. False: it came too late, drop it."""
        began = self._computing.pop(worker, None)
        if not steps or began != self.number or self._pushing:
            return False
        self._held[worker] = weight
        return True

    def due(self) -> dict[int, float]:
        """What is to be applied together now.

        Returns:
          Worker -> its share of the weights, which add up to 1; empty as long as
          the round waits for others. Each of them is to be reported to `pushed`.
        """
        if self._pushing or not self._held or len(self._held) < self._enough():
            return {}
        total = sum(self._held.values())
        equal = 1 / len(self._held)
        shares = {w: weight / total if total else equal for w, weight in self._held.items()}
        self._pushing = set(shares)
        self._held = {}
        return shares

    def pushed(self, worker: int) -> None:
        """What the worker computed has reached the servers; with the last one the round ends."""
        if worker not in self._pushing:
            return  # It had left, and the round may have ended without it.
        self._pushing.discard(worker)
        if not self._pushing:
            self.number += 1

    def _enough(self) -> int:
        # Where workers run out of data, those that are left are waited for.
        return max(1, min(len(self._members), self._most - self.backups))
