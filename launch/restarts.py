"""How often and how soon what is lost is started again. Plain arithmetic, with a clock given."""

import collections
import dataclasses
import random
from collections.abc import Callable

HOUR = 3600.0  # s


@dataclasses.dataclass(frozen=True)
class Backoff:
    """Delays that double with each failure, with jitter, so that tasks do not return together.

    The delay before restart n (from 0) is `min(most, first * 2**n)` s, times a random factor from
    `1 - jitter` to 1.
    """

    first: float = 1.0  # s
    most: float = 60.0  # s
    jitter: float = 0.5
    steady: float = 20.0  # s; a task that lived for this long does not fail again and again

    def delay(self, failures: int, uniform: Callable[[], float] = random.random) -> float:
        """Returns the delay in seconds.

        Args:
          failures: how often the task has been started again, and died soon after.
          uniform: returns a random number from 0 to 1.
        """
        longest = min(self.most, self.first * 2.0 ** min(failures, 60))
        return longest * (1.0 - self.jitter * uniform())


@dataclasses.dataclass(frozen=True)
class Policy:
    """What may be started again.

    Attributes:
      budgets: role -> restarts an hour of all its tasks together.
      job_restarts: how often the job as a whole may begin again.
      grace: seconds between SIGTERM and SIGKILL.
      settle: seconds that tasks have to end by themselves, as tfps servers do when the job is over,
        before they are told to.
      without_ps: whether the job goes on without a parameter server that cannot be started again.
      without_workers: whether it goes on without a worker that cannot be, while it has another one.
      host_timeout: seconds for which a host that is away is tried again.
      backoff: the delays before restarts.
    """

    budgets: dict[str, int]
    job_restarts: int = 0
    grace: float = 30.0
    settle: float = 5.0
    without_ps: bool = False
    without_workers: bool = False
    host_timeout: float = 600.0
    backoff: Backoff = dataclasses.field(default_factory=Backoff)


@dataclasses.dataclass
class Absence:
    """What is known of a host from its loss until a task starts there again.

    Attributes:
      since: seconds on the supervisor's clock at which the host was last there.
      tries: how often it was tried again in vain.
      delays: role -> seconds after which its tasks are started again. The loss of a host is one
        loss for each role, however many tasks were there.
    """

    since: float
    tries: int = 0
    delays: dict[str, float] = dataclasses.field(default_factory=dict)


class Budget:
    """How many restarts the tasks of one role may have within a sliding hour, together."""

    def __init__(
        self,
        limit: int,
        backoff: Backoff | None = None,
        period: float = HOUR,
        uniform: Callable[[], float] = random.random,
    ):
        """Begins with nothing spent.

        Args:
          limit: restarts within any `period`.
          backoff: the delays; they grow while the same task dies soon after each restart.
          period: seconds.
          uniform: returns a random number from 0 to 1.
        """
        self.limit = limit
        self._backoff = backoff or Backoff()
        self._period, self._uniform = period, uniform
        self._spent: collections.deque[tuple[float, str]] = collections.deque()
        self._due: dict[str, tuple[int, float]] = {}  # task -> (failures, s of its last start)

    def used(self, now: float) -> int:
        """Returns how many restarts the hour before `now` (s) has seen."""
        while self._spent and self._spent[0][0] <= now - self._period:
            self._spent.popleft()
        return len(self._spent)

    def spend(self, task: str, now: float) -> float | None:
        """Takes a restart from the budget.

        Args:
          task: the name of the task that was lost.
          now: the time in seconds; never less than in an earlier call.

        Returns:
          Seconds after which the task is to be started, or None if the budget is used up.
        """
        if self.used(now) >= self.limit:
            return None
        failures, started = self._due.get(task, (0, now))
        if now - started >= self._backoff.steady:
            failures = 0
        self._spent.append((now, task))
        delay = self._backoff.delay(failures, self._uniform)
        self._due[task] = failures + 1, now + delay
        return delay
