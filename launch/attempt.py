"""An attempt: a job from its start to its end or failure; decides what an exit means.

The rules (`exit_codes.py` has the codes):

- When the chief has ended with 0, or all workers where there is no chief, the job is done. An
  evaluator is waited for, too.
- A task that ended by an error of the user's own is never started again: the job ends.
- A task that a signal killed, that lost a peer, or whose host is gone, is started again alone,
  while its role has restarts left in this hour. Otherwise the job ends.
- A host that is lost costs each role one restart; to try it again costs no more, up to a limit.
- A chief that lost a peer says that the job as a whole cannot go on: the job ends.
- A server that has ended with 0, or with the code of a lost peer, is started again if its chief is:
  the chief had told it that the job is done, or has failed, before it ended itself.
- A server that ends after the chief has succeeded is missed by nobody, though an evaluator goes on.
- An evaluator or a spare server that cannot be started again is done without, and so is a parameter
  server as long as a spare one is there for it, or always if the policy says so. So is a
  worker that is not the last one, if the policy says so.
"""

import dataclasses
import math
import signal
from collections.abc import Callable, Collection

from launch import errors, exit_codes, failures, restarts
from launch.failures import Failure
from launch.launcher import Event, Exited, HostLost, Launcher, Line, Told
from launch.output import Output
from launch.restarts import Policy
from launch.topology import CHIEF, EVALUATOR, PS, SPARE, WORKER, Task, Topology

POLL = 0.2  # s

# s from the start of a chief within which a server may end that the chief before has told to.
_SAID = 10.0

# s of the grace that the other tasks have when a chief takes as long as it can to end.
_REST = 5.0

# s for which is read, at the end of a wait for tasks, what they have written.
_LAST_WORDS = 1.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How an attempt ended.

    Attributes:
      code: the exit code of the job.
      again: whether the job as a whole might succeed if it began again.
      because: why, in words; empty if the job is done.
    """

    code: int
    again: bool = False
    because: str = ""


class Attempt:
    """The job from its start to its end or failure."""

    def __init__(
        self,
        launcher: Launcher,
        topology: Topology,
        policy: Policy,
        budgets: dict[str, restarts.Budget],
        output: Output,
        clock: Callable[[], float],
        told: list[int],
    ):
        """Starts nothing yet; see `Job`.

        Args:
          launcher: what runs the tasks.
          topology: the tasks and their places.
          policy: what may be started again.
          budgets: role -> what is left of its restarts.
          output: what the user sees.
          clock: returns the time in seconds.
          told: signals that the launcher has got; the list grows.
        """
        self._launcher, self._topology, self._policy = launcher, topology, policy
        self._budgets, self._output, self._clock, self._told = budgets, output, clock, told
        self._running: set[str] = set()
        self._connections: dict[str, int] = {}  # On which each task was last started.
        # Tasks that may run although no answer to their start has come.
        self._unsure: set[str] = set()
        self._due = {task.name: 0.0 for task in topology.tasks}  # When to start what is not up.
        self._succeeded: set[str] = set()
        self._done_without: set[str] = set()
        self._failures: list[Failure] = []
        self._restarted: dict[str, float] = {}  # When a task was last started again.
        self._away: dict[str, restarts.Absence] = {}  # By the host's name.
        # Servers that a chief has told of its failure: it may be the chief that begins again.
        self._let_go: dict[str, Failure] = {}
        self._verdict: Verdict | None = None

    def run(self) -> Verdict:
        """Runs until the job is done or has failed, and all its tasks have ended."""
        while self._verdict is None and not self._told:
            self._judge_let_go()
            self._start_what_is_due()
            if self._verdict is None and (event := self._launcher.watch(POLL)):
                self._on(event)
        if self._verdict is None:
            return self._preempted(self._told[0])
        self._wind_up()
        return self._verdict

    # Starting.

    def _start_what_is_due(self) -> None:
        for name in [n for n, when in self._due.items() if when <= self._clock()]:
            if self._due.get(name, math.inf) > self._clock():  # Its host was just tried in vain.
                continue
            task = self._topology.task(name)
            if self._needs_no_more(task):
                del self._due[name]
                continue
            self._output.begin(name, f"{task.host} {task.endpoint}")
            del self._due[name]
            self._unsure.add(name)
            try:
                self._connections[name] = self._launcher.start(task, self._topology.environ(task))
            except errors.HostError as e:
                if self._told:  # The launcher has stopped waiting for the host.
                    return
                self._not_started(task, f"could not be started: {e}")
            else:
                self._unsure.discard(name)
                self._running.add(name)
                self._away.pop(task.host, None)
            if self._verdict or self._told:
                return

    def _not_started(self, task: Task, why: str) -> None:
        """Has the host of a task tried again later, for all that is to start there."""
        now = self._clock()
        away = self._away.setdefault(task.host, restarts.Absence(now))
        failure = Failure(task, None, why, now)
        self._failures.append(failure)
        here = [t for t in self._topology.tasks if t.host == task.host and t.name in self._due]
        waiting = [t for t in here if not self._needs_no_more(t)]
        left = self._policy.host_timeout - (now - away.since)
        if left <= 0.0:
            self._give_up(failure, f", and its host was away for {now - away.since:.0f} s")
            for one in waiting:
                del self._due[one.name]
                if self._verdict is None:
                    self._failures.append(lost := Failure(one, None, "is lost with its host", now))
                    self._give_up(lost)
            return
        delay = self._policy.backoff.delay(away.tries)
        away.tries += 1
        for one in [task, *waiting]:
            due = max(self._due.get(one.name, 0.0), now + delay)
            self._due[one.name] = self._restarted[one.name] = due
        self._output.say(
            f"{failure}; the host is tried again in {delay:.1f} s, and for {left:.0f} s in all",
            bad=True,
        )
        self._start_again_for_a_chief()

    # What happens.

    def _on(self, event: Event) -> None:
        if isinstance(event, Line):
            self._output.line(event)
        elif isinstance(event, Exited):
            self._on_exit(self._topology.task(event.task), event.status)
        elif isinstance(event, HostLost):
            self._on_host_lost(event)
        else:
            self._on_told(event)

    def _on_told(self, event: Told) -> None:
        """Ends the job as if the launcher had got the signal, which may come to every host."""
        if not self._told:
            name = signal.Signals(event.signum).name
            self._output.say(f"host {event.host} got {name}", bad=True)
            self._told.append(signal.SIGTERM)
            self._launcher.hurry()

    def _on_exit(self, task: Task, status: int) -> None:
        if task.name not in self._running | self._unsure:
            return
        self._running.discard(task.name)
        self._unsure.discard(task.name)
        self._due.pop(task.name, None)  # Its start was to be tried again, but it had run.
        if status == exit_codes.DONE:
            self._succeeded.add(task.name)
            self._judge()
            self._start_again_for_a_chief()
        else:
            self._failed(task, status, exit_codes.described(status))

    def _judge(self) -> None:
        """Notes that the job is done, if it is."""
        awaited = {*self._topology.leaders, *self._topology.evaluators} - self._done_without
        if self._succeeded.issuperset(awaited):
            self._verdict = self._verdict or Verdict(exit_codes.DONE)

    def _on_host_lost(self, event: HostLost) -> None:
        self._output.say(f"host {event.host} is lost: {event.why}", bad=True)
        for task in self._topology.tasks:
            # The host may have been connected to again before this event is looked at.
            gone = self._connections.get(task.name, 0) <= event.connection
            if task.host == event.host and task.name in self._running and gone:
                self._running.discard(task.name)
                self._away.setdefault(event.host, restarts.Absence(self._clock() - event.silent))
                self._failed(task, None, f"is lost with its host: {event.why}", event.silent)

    def _failed(self, task: Task, status: int | None, why: str, ago: float = 0.0) -> None:
        failure = Failure(task, status, why, self._clock() - ago)
        self._failures.append(failure)
        if self._verdict is not None:
            return
        if self._needs_no_more(task):
            self._go_on_without(failure)
            return
        if status is not None and not exit_codes.may_be_retried(status):
            if task.role == EVALUATOR:
                self._go_on_without(failure)
                return
            self._verdict = Verdict(failure.code, because=str(failure))
        elif status == exit_codes.LOST and task.role == CHIEF:
            self._verdict = Verdict(exit_codes.LOST, again=True, because=str(failure))
        elif status == exit_codes.LOST and self._is_server(task):
            self._let_go[task.name] = failure
            self._start_again_for_a_chief()
        else:
            self._retry(failure)

    def _judge_let_go(self) -> None:
        """Takes servers that have ended for failures of their own, if the chief goes on."""
        for name, failure in list(self._let_go.items()):
            if self._verdict is None and self._clock() - failure.when >= _SAID:
                del self._let_go[name]
                if self._needs_no_more(failure.task):
                    self._go_on_without(failure)
                else:
                    self._retry(failure)

    def _retry(self, failure: Failure) -> None:
        task, budget = failure.task, self._budgets[failure.task.role]
        away = self._away.get(task.host) if failure.status is None else None
        delay = away.delays.get(task.role) if away else None
        if delay is None:
            delay = budget.spend(task.name, self._clock())
        if delay is None:
            used = f", and {task.role} tasks have used their {budget.limit} restarts of this hour"
            self._give_up(failure, used if budget.limit else "")
            return
        if away:
            away.delays[task.role] = delay
        self._due[task.name] = self._restarted[task.name] = self._clock() + delay
        self._output.say(
            f"{failure}; it is started again in {delay:.1f} s "
            f"({budget.used(self._clock())} of {budget.limit} restarts of {task.role} tasks this "
            "hour)",
            bad=True,
        )
        self._start_again_for_a_chief()

    def _give_up(self, failure: Failure, reason: str = "") -> None:
        """Goes on without a task, or ends the job; `reason` follows the failure in messages."""
        if self._can_do_without(failure.task):
            self._go_on_without(failure)
        else:
            because = f"{failure}{reason}"
            self._verdict = Verdict(failure.code, again=True, because=because)

    def _start_again_for_a_chief(self) -> None:
        """Starts servers again that have ended as if the job were done, if the chief begins again.

        A server takes a few seconds to end after the chief's message.
        """
        began = [self._restarted[t.name] for t in self._topology.tasks if self._is_new_chief(t)]
        if self._verdict is not None or not any(self._clock() - when < _SAID for when in began):
            return
        if self._succeeded.issuperset(self._topology.leaders):
            return
        for name in self._succeeded - {*self._topology.leaders, *self._topology.evaluators}:
            self._succeeded.discard(name)
            self._due.setdefault(name, self._clock())
        for name, failure in self._let_go.items():
            self._failures.remove(failure)
            self._due.setdefault(name, self._clock())
        self._let_go = {}

    def _is_new_chief(self, task: Task) -> bool:
        return task.role == CHIEF and task.name in self._restarted

    def _is_server(self, task: Task) -> bool:
        """Whether a task serves a chief; without a chief, workers lead."""
        has_chief = any(one.role == CHIEF for one in self._topology.tasks)
        return has_chief and task.role not in (CHIEF, EVALUATOR)

    def _needs_no_more(self, task: Task) -> bool:
        """Whether a task is a server whose chief has succeeded, though an evaluator goes on."""
        return self._is_server(task) and self._succeeded.issuperset(self._topology.leaders)

    def _can_do_without(self, task: Task) -> bool:
        """Whether the job goes on without a task that cannot be started again."""
        if task.role == WORKER:
            others = {t.name for t in self._topology.tasks if t.role == WORKER and t != task}
            is_leader = task.name in self._topology.leaders
            return self._policy.without_workers and not is_leader and others > self._done_without
        if task.role != PS or self._policy.without_ps:
            return task.role in (EVALUATOR, SPARE, PS)
        spares = [t for t in self._topology.tasks if t.role == SPARE and t.name in self._running]
        replaced = [name for name in self._done_without if self._topology.task(name).role == PS]
        return len(spares) > len(replaced)

    def _go_on_without(self, failure: Failure) -> None:
        """Lets the job go on without a task."""
        self._output.say(f"{failure}; the job goes on without it", bad=True)
        self._done_without.add(failure.task.name)
        # It is not why the job may fail later.
        self._failures = [f for f in self._failures if f.task != failure.task]
        self._judge()

    # The end.

    def _wind_up(self) -> None:
        """Lets tasks end by themselves for a while, and then ends them."""
        done = self._verdict == Verdict(exit_codes.DONE)
        self._collect(self._policy.settle)
        self._end(self._policy.grace)
        if done:
            for failure in self._failures:
                if failure.task.name not in self._succeeded:
                    self._output.say(f"{failure}, but the job was done")

    def _end(self, grace: float) -> None:
        """Ends all tasks; what they end with now is nobody's failure.

        Args:
          grace: seconds between SIGTERM and SIGKILL.
        """
        known = len(self._failures)
        if self._running or self._unsure:
            self._launcher.stop(grace)
            self._collect(grace + 5.0)
        if self._running:
            self._output.say(f"these did not end: {', '.join(sorted(self._running))}", bad=True)
        # A host that was lost was so before it was told to stop.
        self._failures[known:] = [f for f in self._failures[known:] if f.status is None]

    def _collect(self, seconds: float, names: Collection[str] | None = None) -> None:
        """Waits until tasks run no more.

        Args:
          seconds: how long at most.
          names: of the tasks; None for all. Who is in a hurry ends the wait for some of them.
        """
        deadline, told = self._clock() + seconds, len(self._told)
        while self._clock() < deadline and (
            self._running if names is None else self._running.intersection(names)
        ):
            if event := self._launcher.watch(POLL):
                self._on(event)
            if len(self._told) > told:  # Somebody is in a hurry.
                if names is not None:
                    return
                self._launcher.stop(0.0)
                told = len(self._told)
        deadline = self._clock() + _LAST_WORDS
        while self._clock() < deadline and (event := self._launcher.watch(0.0)):
            self._on(event)

    def _preempted(self, signum: int) -> Verdict:
        """Passes a signal to end on to all tasks, to the chief first.

        A chief that saves a last snapshot needs its servers for that.
        """
        name = signal.Signals(signum).name
        self._output.say(
            f"{name}: the tasks are told to end, and have {self._policy.grace:g} s; "
            "a second one kills them"
        )
        self._verdict = Verdict(128 + signum, because=f"the launcher was told to end by {name}")
        begun, grace, told = self._clock(), self._policy.grace, len(self._told)
        chiefs = [t for t in self._topology.tasks if t.role == CHIEF and t.name in self._running]
        if chiefs and len(self._running) > len(chiefs):
            for chief in chiefs:
                self._launcher.signal(chief, signal.SIGTERM)
            known = len(self._failures)
            self._collect(max(grace / 2, grace - _REST), [chief.name for chief in chiefs])
            self._failures[known:] = [f for f in self._failures[known:] if f.status is None]
        hurried = len(self._told) > told
        self._end(0.0 if hurried else max(0.0, grace - (self._clock() - begun)))
        if self._succeeded.issuperset(self._topology.leaders):
            self._verdict = Verdict(exit_codes.DONE)
        return self._verdict

    # The account.

    def explain(self, verdict: Verdict) -> None:
        """Says how the job ended; the last lines of who failed first come last."""
        if not verdict.because:
            return
        first = failures.first(self._failures, self._restarted)
        ends = f"the job ends with exit code {verdict.code}"
        if first is None or self._told:
            self._output.say(f"{verdict.because}; {ends}", bad=True)
            return
        if str(first) != verdict.because:
            self._output.say(f"{verdict.because}; {ends}", bad=True)
            ends = "it failed first"
        lines = "its last lines:" if self._output.has_said(first.task.name) else "it wrote nothing"
        self._output.say(f"{first}; {ends}; {lines}", bad=True)
        self._output.show_last(first.task.name)
