"""The supervisor: drives a launcher through a job, and begins the job again as a whole.

`attempt.py` has the job from its start to its end. An attempt that ended for want of a peer or of
restarts is followed by another one, if the policy allows.
"""

import signal
import time
from collections.abc import Callable, Sequence

from launch import errors, restarts
from launch.attempt import POLL, Attempt
from launch.launcher import Launcher, Line, Told
from launch.output import Output
from launch.restarts import Policy
from launch.topology import Role

_ONE = 1.0  # s within which several signals are one


class Job:
    """Runs a job to its end."""

    def __init__(
        self,
        launcher: Launcher,
        roles: Sequence[Role],
        policy: Policy,
        output: Output,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts nothing yet.

        Args:
          launcher: what runs the tasks.
          roles: the tasks.
          policy: what may be started again.
          output: what the user sees.
          clock: returns the time in seconds.
        """
        self._launcher, self._roles, self._policy = launcher, tuple(roles), policy
        self._output, self._clock = output, clock
        self._budgets = {
            role.name: restarts.Budget(policy.budgets.get(role.name, 0), policy.backoff)
            for role in roles
        }
        self._told: list[int] = []
        self._told_at = 0.0  # When the last of them came.

    def tell(self, signum: int) -> None:
        """Notes that the launcher got a signal; called by signal handlers.

        A terminal that is closed may send SIGHUP more than once. Nobody is in a hurry then.
        """
        now = self._clock()
        if self._told and (signum == signal.SIGHUP or now - self._told_at < _ONE):
            return
        self._told_at = now
        self._told.append(signum)
        self._launcher.hurry()

    def run(self) -> int:
        """Runs the job; returns the exit code.

        Raises:
          LaunchError: the job could not begin.
        """
        try:
            return self._run()
        except errors.HostError:
            if not self._told:
                raise
            name = signal.Signals(self._told[0]).name
            self._output.say(f"{name} came before the job could begin", bad=True)
            return 128 + self._told[0]
        finally:
            self._launcher.close()

    def _run(self) -> int:
        topology = self._launcher.check(self._roles)
        for begun_again in range(self._policy.job_restarts + 1):
            attempt = Attempt(
                self._launcher,
                topology,
                self._policy,
                self._budgets,
                self._output,
                self._clock,
                self._told,
            )
            verdict = attempt.run()
            left = self._policy.job_restarts - begun_again
            if not (verdict.again and left) or self._told:
                break
            delay = self._policy.backoff.delay(begun_again)
            self._output.say(
                f"{verdict.because}; the job begins again in {delay:.1f} s "
                f"({begun_again + 1} of {self._policy.job_restarts} times)",
                bad=True,
            )
            if self._interrupted_in(delay):
                break
            try:
                topology = self._launcher.check(self._roles, again=True)
            except errors.LaunchError as e:
                self._output.say(f"the job cannot begin again: {e}", bad=True)
                break
        attempt.explain(verdict)
        return verdict.code

    def _interrupted_in(self, seconds: float) -> bool:
        until = self._clock() + seconds
        while self._clock() < until and not self._told:
            event = self._launcher.watch(POLL)
            if isinstance(event, Line):
                self._output.line(event)
            elif isinstance(event, Told) and not self._told:
                self.tell(signal.SIGTERM)
        return bool(self._told)
