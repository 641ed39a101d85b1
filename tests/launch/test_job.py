"""What the supervisor decides, with a launcher and a clock that tests make."""

import io
import signal

import pytest

from launch import errors, failures, job, output, restarts, topology
from launch.launcher import Exited, HostLost, Line, Told


class Scripted:
    """A launcher whose tasks do what a script says.

    Attributes:
      started: names of tasks, in the order in which they were started.
      stops: the graces with which all tasks were told to end.
      tries: when (s) a host that was away was tried.
      late: name of a task -> how many of its starts are answered too late.
      connection: the number of the connection on which tasks are started.
    """

    def __init__(self, script, hosts=("a", "b"), on_stop=0, on_signal=None, away=None):
        """Takes the script.

        Args:
          script: list of (time in s, event), or of (time, function) that is called.
          hosts: tasks are placed on them in turn.
          on_stop: what tasks end with that are told to end; None if they do not end.
          away: name of a host -> from when to when (s) it cannot be reached.
          on_signal: s after which a chief ends with 143 that gets a signal; None if it does not.
        """
        self.now = 0.0
        self.script = sorted(script, key=lambda item: item[0])
        self.hosts, self.on_stop, self.on_signal = hosts, on_stop, on_signal
        self.signalled = []
        self.started, self.stops, self.checks, self.closed = [], [], [], False
        self.hurried = False
        self.running, self.stopping = set(), False
        self.late, self.connection = {}, 0
        self.away, self.tries = dict(away or {}), []

    def check(self, roles, again=False):
        self.checks.append(again)
        self.stopping = False
        names = [(role.name, i) for role in roles for i in range(role.count)]
        self.topology = topology.Topology(
            tuple(
                topology.Task(role, i, self.hosts[n % len(self.hosts)], "1.2.3.4", n + 1)
                for n, (role, i) in enumerate(names)
            )
        )
        return self.topology

    def start(self, task, environ):
        assert "TF_CONFIG" in environ
        begin, end = self.away.get(task.host, (0, 0))
        if begin <= self.now < end:
            self.tries.append(self.now)
            raise errors.HostError(f"host {task.host}: no answer within 10 s")
        if task.name not in self.running:  # As an agent, which starts no task twice.
            self.started.append(task.name)
        self.running.add(task.name)
        if self.late.get(task.name, 0):
            self.late[task.name] -= 1
            raise errors.HostError(f"host {task.host}: no answer within 8 s")
        return self.connection

    def watch(self, timeout):
        if self.script and self.script[0][0] <= self.now:
            event = self.script.pop(0)[1]
            if callable(event):
                return event()
            if isinstance(event, Exited):
                self.running.discard(event.task)
            if isinstance(event, HostLost):
                self.running -= {t.name for t in self.topology.tasks if t.host == event.host}
            return event
        if self.stopping and self.on_stop is not None and self.running:
            return Exited(self.running.pop(), self.on_stop)
        self.now += max(timeout, 0.01)
        assert self.now < 10_000, "the job does not end"
        return None

    def signal(self, task, signum):
        assert signum == signal.SIGTERM and task.name == "chief 0"
        self.signalled.append(self.now)
        if self.on_signal is not None:
            self.script.append((self.now + self.on_signal, Exited(task.name, 143)))
            self.script.sort(key=lambda item: item[0])

    def stop(self, grace):
        self.stops.append(grace)
        self.stopping = True

    def hurry(self):
        self.hurried = True

    def close(self):
        self.closed = True


def run(
    script,
    *,
    workers=2,
    ps=1,
    evaluator=False,
    spares=0,
    budgets=None,
    job_restarts=0,
    told=None,
    late=None,
    rules=None,
    **arguments,
):
    """The exit code, the launcher, and what was said on standard error."""
    launcher = Scripted(script, **arguments)
    launcher.late = dict(late or {})
    out, err = io.BytesIO(), io.BytesIO()
    shown = output.Output(out=out, err=err, colour=(False, False))
    budgets = {"worker": 10, "ps": 3, "chief": 3} if budgets is None else budgets
    policy = restarts.Policy(
        budgets,
        job_restarts,
        backoff=restarts.Backoff(1.0, 60.0, 0.0),
        **(rules or {}),
    )
    roles = topology.roles(workers, ps, evaluator=evaluator, spares=spares)
    made = job.Job(launcher, roles, policy, shown, clock=lambda: launcher.now)
    for when, signum in told or ():
        launcher.script.append((when, lambda signum=signum: made.tell(signum)))
    launcher.script.sort(key=lambda item: item[0])
    code = made.run()
    shown.close()
    assert launcher.closed
    return code, launcher, err.getvalue().decode().splitlines()


def test_a_server_that_ends_badly_after_the_chief_is_told_of():
    script = [(5, Exited("chief 0", 0)), (6, Exited("ps 0", 75)), (6, Exited("worker 0", 0))]
    code, launcher, err = run(script)
    assert code == 0
    assert launcher.stops == [30.0]  # Worker 1 did not end by itself.
    (line,) = err
    assert "ps 0" in line
    assert "but the job was done" in line


def test_a_ps_that_has_used_its_restarts_is_done_without_while_there_is_a_spare_one():
    lost = [(5, Exited("ps 0", -9)), (9, Exited("ps 1", -9))]
    budgets = {"ps": 0}
    code, launcher, err = run([*lost, (20, Exited("chief 0", 0))], ps=2, spares=2, budgets=budgets)
    assert code == 0 and len(err) == 2
    assert all("the job goes on without it" in line for line in err)
    assert launcher.started.count("ps 0") == launcher.started.count("ps 1") == 1
    code, *_ = run(
        [*lost, (20, Exited("chief 0", 0))], ps=3, rules={"without_ps": True}, budgets=budgets
    )
    assert code == 0
    code, _, err = run([*lost, (20, Exited("chief 0", 0))], ps=2, spares=1, budgets=budgets)
    assert code == 137 and "ps 1" in err[1] and "ends with exit code 137" in err[1]


def test_a_spare_server_that_is_lost_is_no_loss():
    script = [(5, Exited("spare 0", -9)), (20, Exited("chief 0", 0))]
    code, launcher, _ = run(script, spares=1, budgets={"spare": 1})
    assert code == 0 and launcher.started.count("spare 0") == 2
    code, _, err = run(script, spares=1, budgets={})
    assert code == 0 and "the job goes on without it" in err[0]
    # There is none to take the place of a ps any more.
    script.insert(1, (9, Exited("ps 0", -9)))
    code, _, err = run(script, spares=1, budgets={})
    assert code == 137


def test_servers_that_a_dying_chief_has_told_to_end_are_started_again_with_it():
    script = [
        (5, Exited("ps 0", 0)),
        (6, Exited("chief 0", -6)),
        (7, Exited("worker 0", 0)),
        (30, Exited("chief 0", 0)),
        *((31, Exited(name, 0)) for name in ("ps 0", "worker 0", "worker 1")),
    ]
    code, launcher, _ = run(script)
    assert code == 0
    counts = {name: launcher.started.count(name) for name in ("chief 0", "ps 0", "worker 0")}
    assert counts == {"chief 0": 2, "ps 0": 2, "worker 0": 2}
    assert launcher.started.count("worker 1") == 1


@pytest.mark.parametrize("first", ["servers", "chief"])
def test_a_chief_that_is_told_to_end_costs_its_servers_nothing(first):
    """They are told of its failure, and end with 75."""
    names = [f"ps {i}" for i in range(4)] + [f"worker {i}" for i in range(4)]
    script = []
    for at in (5, 100):
        servers = [(at + (first == "chief"), Exited(name, 75)) for name in names]
        chief = [(at + (first == "servers"), Exited("chief 0", 143))]
        script += servers + chief if first == "servers" else chief + servers
    script += [(200, Exited("chief 0", 0)), *((201, Exited(name, 0)) for name in names)]
    code, launcher, err = run(script, workers=4, ps=4)
    assert code == 0, err
    assert {launcher.started.count(name) for name in (*names, "chief 0")} == {3}
    # A server that ends so by itself is started again on its own account.
    script = [(5, Exited("ps 0", 75)), (60, Exited("chief 0", 0))]
    code, launcher, err = run(script)
    assert code == 0 and launcher.started.count("ps 0") == 2
    assert any("1 of 3 restarts of ps tasks" in line for line in err)


def test_a_server_that_is_lost_after_the_chief_has_succeeded_is_missed_by_nobody():
    script = [
        (5, Exited("chief 0", 0)),
        (6, Exited("worker 0", -9)),
        (7, Exited("ps 0", 1)),
        (20, Exited("evaluator 0", 0)),
    ]
    code, launcher, err = run(script, evaluator=True, budgets={})
    assert code == 0 and launcher.now >= 20, err
    assert launcher.started.count("worker 0") == launcher.started.count("ps 0") == 1


def test_a_server_that_was_lost_just_before_the_chief_succeeded_is_not_started_again():
    """Its restart is due, or its end is not judged yet, when the chief ends."""
    script = [
        (4.9, Exited("worker 0", -9)),
        (4.9, Exited("ps 0", 75)),
        (5, Exited("chief 0", 0)),
        (40, Exited("evaluator 0", 0)),
    ]
    code, launcher, err = run(script, evaluator=True, budgets={"worker": 1})
    assert code == 0 and launcher.now >= 40, err
    assert launcher.started.count("worker 0") == launcher.started.count("ps 0") == 1


def test_servers_of_a_chief_that_succeeds_soon_after_its_restart_are_not_started_again():
    script = [
        (5, Exited("chief 0", 143)),
        (9, Exited("chief 0", 0)),
        (10, Exited("ps 0", 0)),
        (40, Exited("evaluator 0", 0)),
    ]
    code, launcher, err = run(script, evaluator=True)
    assert code == 0 and launcher.now >= 40, err
    assert launcher.started.count("chief 0") == 2
    assert launcher.started.count("ps 0") == 1


def test_a_job_waits_for_its_evaluator_and_starts_it_again():
    script = [
        (5, Exited("chief 0", 0)),
        (6, Exited("evaluator 0", -9)),
        (20, Exited("evaluator 0", 0)),
        *((21, Exited(name, 0)) for name in ("ps 0", "worker 0", "worker 1")),
    ]
    budgets = {"evaluator": 1}
    code, launcher, err = run(script, evaluator=True, budgets=budgets)
    assert code == 0 and launcher.now >= 20
    assert launcher.started.count("evaluator 0") == 2
    (line,) = err
    assert "evaluator 0 on " in line and "is started again in" in line


@pytest.mark.parametrize("status", [1, 75])
def test_a_job_does_without_an_evaluator_that_fails(status):
    script = [(5, Exited("evaluator 0", status)), (9, Exited("chief 0", 0))]
    code, launcher, err = run(script, evaluator=True, budgets={})
    assert code == 0 and launcher.now >= 9
    assert f"exit code {status}" in err[0] and err[0].endswith("the job goes on without it")
    # It is not why the job fails later.
    script = [(5, Exited("evaluator 0", status)), (9, Exited("worker 0", 3))]
    code, launcher, err = run(script, evaluator=True, budgets={})
    assert code == 3 and "worker 0" in err[-1]


def test_a_peer_that_is_lost_is_no_first_failure():
    """Servers tell of the lost chief before the launcher is told how the chief ended."""
    script = [
        (5, Line("chief 0", "the reason")),
        (5, Exited("ps 0", 75)),
        (5, Exited("worker 1", 75)),
        (5.5, Exited("chief 0", 1)),
    ]
    code, launcher, err = run(script)
    assert code == 1
    assert err[-1] == "[chief 0] the reason"
    assert launcher.started == ["ps 0", "worker 0", "worker 1", "chief 0"]


def test_a_host_is_lost_when_it_was_last_heard():
    """The chief notices sooner than the launcher; the host comes first all the same."""
    script = [
        (50, Exited("chief 0", 75)),
        (50.5, Exited("ps 0", 1)),
        (52, HostLost("b", "silence", silent=20.0)),
    ]
    code, _, err = run(script)  # worker 0 and the chief are on host b.
    assert code == 75
    assert any(
        line.startswith("[launch] worker 0 on b") and "it failed first" in line for line in err
    )


def test_what_was_got_over_is_not_the_reason():
    script = [
        (5, Exited("worker 0", -9)),
        (5 + failures.FORGOTTEN + 10, Exited("ps 0", -11)),
        (5 + failures.FORGOTTEN + 11, Exited("chief 0", 75)),
    ]
    code, launcher, err = run(script)
    assert code == 75
    assert launcher.started.count("worker 0") == 2
    (line,) = [line for line in err if "it failed first" in line]
    assert "ps 0" in line


def test_delays_double_and_budgets_end():
    script = [(0.5 + 10 * i, Exited("ps 0", -6)) for i in range(4)]
    code, launcher, err = run(script)
    assert code == 134
    assert launcher.started.count("ps 0") == 4
    delays = [line.split("again in ")[1].split(" s")[0] for line in err if "again in" in line]
    assert delays == ["1.0", "2.0", "4.0"]


@pytest.mark.parametrize("workers", [2, 8])
def test_a_host_that_is_away_for_a_minute_costs_each_role_one_restart(workers):
    script = [(5, HostLost("b", "silence", silent=20.0)), (200, Exited("chief 0", 0))]
    roles = [f"worker {i}" for i in range(workers)]
    here = [name for n, name in enumerate(["ps 0", *roles, "chief 0"]) if n % 2]
    code, launcher, err = run(
        script, workers=workers, budgets={"worker": 1, "chief": 1}, away={"b": (5, 65)}
    )
    assert code == 0, err
    assert all(launcher.started.count(name) == 2 for name in here)
    # One of its tasks asks for all of them, later and later.
    assert len(launcher.tries) == len(set(launcher.tries)) <= 8
    assert not any("2 of 1 restarts" in line for line in err)


def test_a_host_that_stays_away_ends_the_job_after_a_limit():
    rules = {"host_timeout": 100.0}
    script = [(5, HostLost("b", "silence")), (900, Exited("chief 0", 0))]
    code, launcher, err = run(script, away={"b": (5, 1000)}, rules=rules)
    assert code == 75 and 105 <= launcher.now < 175
    assert any("its host was away for" in line for line in err)
    # So does a host that does not answer to the first start; and no restart at all is allowed.
    code, launcher, _ = run(script, away={"b": (0, 1000)}, rules={"host_timeout": 0.0})
    assert code == 75 and launcher.now < 6
    assert run(script[1:], away={"b": (0, 90)}, rules=rules, budgets={})[0] == 0


def test_a_worker_is_done_without_if_the_policy_says_so():
    rules = {"host_timeout": 100.0, "without_workers": True, "without_ps": True}
    script = [(5, HostLost("b", "silence")), (900, Exited("chief 0", 0))]
    where = {"hosts": "abaaba", "away": {"b": (5, 2000)}, "workers": 3, "ps": 2}
    code, launcher, err = run(script, rules=rules, **where)
    assert code == 0 and launcher.now >= 900, err
    gone = [line.split(" on b")[0] for line in err if "the job goes on without it" in line]
    assert sorted(gone) == ["[launch] ps 1", "[launch] worker 2"]
    assert run(script, rules={**rules, "without_ps": False}, **where)[0] == 75
    assert run(script, rules={**rules, "without_workers": False}, **where)[0] == 75
    killed = [(5, Exited("worker 0", -9)), (6, Exited("worker 1", -9)), (9, Exited("chief 0", 0))]
    code, _, err = run(killed, budgets={}, rules=rules)
    assert code == 137  # It was the last one.
    assert any("worker 0" in line and "goes on without it" in line for line in err)
    code, _, err = run(killed[:1], budgets={}, ps=0, rules=rules)
    assert code == 137  # All workers lead.


@pytest.mark.parametrize("when", [0.5, 5])
def test_a_start_that_is_answered_late(when):
    """The task runs, whether it ends before or after it is tried again."""
    code, launcher, err = run([(when, Exited("chief 0", 0))], late={"chief 0": 1})
    assert code == 0 and launcher.now < 20
    assert launcher.started.count("chief 0") == 1
    assert "could not be started" in err[0]


def test_a_task_that_may_run_is_told_to_end():
    """The next attempt must not find it at work."""
    code, launcher, _ = run([(1, Exited("worker 0", 3))], workers=1, ps=0, late={"worker 0": 1})
    assert code == 3 and launcher.stops == []
    script = [(0.5, Exited("worker 1", 3))]
    code, launcher, _ = run(script, workers=2, ps=0, late={"worker 0": 1}, on_stop=143)
    assert code == 3 and launcher.stops == [30.0]


def test_a_connection_that_is_lost_takes_no_task_of_a_later_one():
    def replaced():
        launcher.connection = 1
        return Exited("worker 1", -9)

    script = [
        (5, replaced),  # Worker 1 is started again when the host is connected to again.
        (8, HostLost("a", "silence", connection=0)),
        (30, Exited("chief 0", 0)),
    ]
    launcher = Scripted(script)
    shown = output.Output(out=io.BytesIO(), err=(err := io.BytesIO()), colour=(False, False))
    policy = restarts.Policy(
        {"worker": 10, "ps": 3, "chief": 3}, backoff=restarts.Backoff(1.0, 60.0, 0.0)
    )
    code = job.Job(launcher, topology.roles(2, 1), policy, shown, lambda: launcher.now).run()
    shown.close()
    # ps 0 and worker 1 are on host a; the first was started on the connection that was lost.
    said = err.getvalue().decode()
    assert code == 0
    assert "ps 0 on a" in said and "is lost with its host" in said
    assert not any("worker 1" in line and "lost with" in line for line in said.splitlines())


def test_what_ends_at_the_last_moment_has_ended():
    """Its end comes together with lines, when nobody waits for it any more."""
    script = [(5, Exited("chief 0", 0)), (9.9, Exited("ps 0", 0)), (9.9, Exited("worker 1", 0))]
    made = Scripted(script, on_stop=None)
    late = [Line("worker 0", "the last words"), Exited("worker 0", 0), Line("worker 0", "more")]
    watch = made.watch

    def watched(timeout):
        return late.pop(0) if timeout == 0.0 and late else watch(timeout)

    made.watch = watched
    shown = output.Output(out=(out := io.BytesIO()), err=(err := io.BytesIO()), colour=(False,) * 2)
    supervisor = job.Job(made, topology.roles(2, 1), restarts.Policy({}), shown, lambda: made.now)
    assert supervisor.run() == 0
    shown.close()
    assert made.stops == [] and made.now < 15 and not late
    assert b"did not end" not in err.getvalue() and b"more" in out.getvalue()


def test_a_task_that_writes_without_a_pause_is_not_read_for_ever():
    made = Scripted([(5, Exited("chief 0", 0))], on_stop=None)
    watch, begun = made.watch, []

    def watched(timeout):
        if timeout > 0.0:
            return watch(timeout)
        begun.append(made.now)
        assert made.now - begun[0] < 200
        made.now += 0.01
        return Line("worker 0", "and on")

    made.watch = watched
    shown = output.Output(out=io.BytesIO(), err=io.BytesIO(), colour=(False, False))
    policy = restarts.Policy({}, grace=5.0)
    assert job.Job(made, topology.roles(2, 1), policy, shown, lambda: made.now).run() == 0
    shown.close()


def test_a_job_that_begins_again():
    script = [
        (5, Exited("worker 1", -9)),
        (5.2, Exited("chief 0", 75)),
        (60, Exited("chief 0", 75)),
        (120, Exited("chief 0", 0)),
    ]
    code, launcher, err = run(script, job_restarts=2)
    assert code == 0
    assert launcher.checks == [False, True, True]
    assert launcher.started.count("chief 0") == 3
    assert sum("the job begins again" in line for line in err) == 2
    code, launcher, _ = run(script, job_restarts=1)
    assert code == 75
    assert launcher.checks == [False, True]


def test_users_own_errors_are_never_retried():
    code, launcher, _ = run([(5, Exited("worker 1", 3))], job_restarts=5)
    assert code == 3
    assert launcher.checks == [False]


@pytest.mark.parametrize(("signum", "code"), [(15, 143), (2, 130), (1, 129)])
def test_signals(signum, code):
    found, launcher, err = run([], told=[(5, signum)], on_stop=143, on_signal=2)
    assert found == code
    # The chief had its servers while it saved what it has.
    assert launcher.signalled == [pytest.approx(5.0, abs=0.5)]
    assert launcher.stops == [pytest.approx(28.0, abs=0.5)]
    assert not any("failed first" in line for line in err)


def test_a_start_that_a_signal_ends_is_no_failure():
    """The supervisor waits for a host when the signal comes."""
    made = Scripted([(0.3, Exited("worker 1", -9))], on_stop=143, on_signal=0)
    shown = output.Output(out=io.BytesIO(), err=(err := io.BytesIO()), colour=(False, False))
    policy = restarts.Policy({"worker": 3}, backoff=restarts.Backoff(0.5, 60.0, 0.0))
    supervisor = job.Job(made, topology.roles(2, 1), policy, shown, lambda: made.now)
    start = made.start

    def waits(task, environ):
        if made.now > 0:
            supervisor.tell(15)
            assert made.hurried
            raise errors.HostError("host b: it has not answered yet")
        start(task, environ)

    made.start = waits
    assert supervisor.run() == 143
    shown.close()
    assert made.stops == [pytest.approx(30.0, abs=0.5)]
    assert "could not be started" not in err.getvalue().decode()


def test_a_second_signal_kills():
    script = [(7, lambda: None)]
    code, launcher, _ = run(script, told=[(5, 2), (6, 2)], on_stop=None)
    assert code == 130
    assert launcher.stops == [0.0]  # The chief had a second.
    code, launcher, _ = run(script, told=[(5, 2), (40, 2)], on_stop=None)
    assert launcher.stops == [pytest.approx(5.0, abs=0.5)]  # It has to go with the others.
    code, launcher, _ = run(script, ps=0, told=[(5, 2), (6, 2)], on_stop=None)
    assert launcher.stops == [30.0, 0.0]


def test_a_signal_that_every_host_gets_is_one():
    script = [(when, Told(host, 15)) for when, host in ((5, "a"), (5.1, "b"), (6, "a"))]
    code, launcher, err = run(script, on_stop=143, on_signal=2)
    assert code == 143, err
    assert launcher.signalled == [pytest.approx(5.0, abs=0.5)]  # The chief came first.
    assert launcher.stops == [pytest.approx(28.0, abs=0.5)]
    # It also ends the wait for the job to begin again.
    script = [(5, Exited("chief 0", 75)), (5.5, Exited("worker 0", 75)), (10.2, Told("a", 15))]
    code, launcher, _ = run(script, job_restarts=1, on_stop=143)
    assert code == 75 and launcher.checks == [False]


@pytest.mark.parametrize("again", [(7, signal.SIGHUP), (5.3, 2)])
def test_a_terminal_that_closes_is_no_hurry(again):
    told = [(5, signal.SIGHUP), again]
    _, launcher, _ = run([], told=told, on_stop=143, on_signal=4)
    assert launcher.stops == [pytest.approx(26.0, abs=0.5)]


def test_a_chief_that_is_done_when_it_is_told_to_end():
    code, _, _ = run([(5.1, Exited("chief 0", 0))], told=[(5, 15)])
    assert code == 0


def test_without_a_chief_workers_lead():
    script = [(5, Exited("worker 1", 0)), (9, Exited("worker 0", 0))]
    code, launcher, _ = run(script, ps=0)
    assert code == 0
    assert launcher.now >= 9
    code, launcher, _ = run([(5, Exited("worker 1", 0)), (9, Exited("worker 0", 1))], ps=0)
    assert code == 1
