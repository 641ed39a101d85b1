"""What every launcher does, whatever it runs tasks by."""

import json
import os
import pathlib
import signal
import time

import pytest

from tests.launch import rigs

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

ENDS = """
    print("hello", role, index)
    if role != "chief":
        serve_until_term()
"""


def lives(folder: pathlib.Path) -> dict[str, int]:
    """How often each task was started."""
    return {p.stem: len(p.read_text().splitlines()) for p in folder.glob("*.lives")}


def gone(folder: pathlib.Path, seconds: float) -> float:
    """Waits until no process of the programs is left; returns how long it took (s)."""
    begun = time.monotonic()
    while left := rigs.living(folder):
        assert time.monotonic() - begun < seconds, left
        time.sleep(0.1)
    return time.monotonic() - begun


def test_a_job_is_done_with_its_chief(rig, launch, tmp_path):
    run = launch(rig, ENDS, "--workers=2", "--ps=2", "--log_dir=logs")
    assert run.wait() == 0, run.err
    for task in ("chief 0", "worker 0", "worker 1", "ps 0", "ps 1"):
        assert f"[{task}] hello {task}" in run.out
        log = (tmp_path / "logs" / f"{task.replace(' ', '-')}.log").read_text()
        assert f"hello {task}\n" in log
    gone(tmp_path, 10)


def test_tasks_know_one_another(rig, launch, tmp_path):
    program = """
        with open(f"{role}-{index}.json", "w") as f:
            json.dump({"config": config, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}, f)
        # Each listens where the others look for it.
        host, port = config["cluster"][role][index].rsplit(":", 1)
        server = socket.create_server((host, int(port)))
        addresses = [a for job in config["cluster"].values() for a in job]
        if role == "chief":
            for address in addresses:
                host, port = address.rsplit(":", 1)
                end = time.monotonic() + 20
                while True:
                    try:
                        socket.create_connection((host, int(port)), 1).close()
                        break
                    except OSError:
                        assert time.monotonic() < end, address
            assert len(set(addresses)) == 5
        else:
            serve_until_term()
    """
    run = launch(rig, program, "--workers=2", "--ps=2")
    assert run.wait() == 0, (run.out, run.err)
    told = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    assert len(told) == 5
    clusters = [t["config"]["cluster"] for t in told.values()]
    assert all(cluster == clusters[0] for cluster in clusters)
    assert {job: len(a) for job, a in clusters[0].items()} == {"chief": 1, "worker": 2, "ps": 2}
    for name, t in told.items():
        task = t["config"]["task"]
        assert f"{task['type']}-{task['index']}" == name
    for name in ("chief-0", "ps-0", "ps-1"):
        assert told[name]["gpus"] == ""


def test_without_ps_all_workers_have_to_succeed(rig, launch):
    program = """
        assert set(config["cluster"]) == {"worker"}
        time.sleep(index)
        print("finished")
    """
    run = launch(rig, program, "--workers=2", "--ps=0")
    assert run.wait() == 0, run.err
    assert sorted(run.out) == ["[worker 0] finished", "[worker 1] finished"]


@pytest.mark.parametrize(
    ("code", "task"), [(1, "worker 1"), (2, "chief 0"), (3, "ps 0"), (42, "worker 0")]
)
def test_an_error_of_the_users_own_ends_the_job(rig, launch, tmp_path, code, task):
    program = f"""
        print("up", flush=True)
        touch(f"{{role}}-{{index}}.up")
        if f"{{role}} {{index}}" == "{task}":
            for name in ("chief-0", "worker-0", "worker-1", "ps-0"):
                wait_for(name + ".up")
            print("the reason is this")
            sys.exit({code})
        serve_until_term()
    """
    run = launch(rig, program, "--workers=2", "--ps=1", "--job_restarts=3")
    assert run.wait() == code
    assert run.err[-1] == f"[{task}] the reason is this"
    (line,) = [line for line in run.err if "its last lines" in line]
    assert line.startswith(f"[launch] {task} on ")
    assert f"exit code {code}" in line
    assert set(lives(tmp_path).values()) == {1}
    gone(tmp_path, 10)


def test_who_failed_first_comes_last(rig, launch, tmp_path):
    """A worker is killed; the chief and the others then lose their peer."""
    program = """
        print("line of", role, index, flush=True)
        touch(f"{role}-{index}.up")
        if role == "worker":
            wait_for("chief-0.up")
            wait_for("ps-0.up")
            print("worker's last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                os.kill(int(open(os.path.join(here, "worker-0.lives")).readline()), 0)
            except (OSError, ValueError):
                if os.path.exists(os.path.join(here, "worker-0.up")):
                    break
            time.sleep(0.02)
        if role == "chief":
            time.sleep(0.3)  # The server is sooner than the chief.
        print("error: a peer was lost", flush=True)
        sys.exit(75)
    """
    run = launch(rig, program, "--workers=1", "--ps=1", "--worker_restarts=5")
    assert run.wait() == 75
    assert run.err[-1] == "[worker 0] worker's last words"
    (line,) = [line for line in run.err if "it failed first" in line]
    assert f"worker 0 on {rig.hosts[0]} (" in line
    assert "was killed by SIGKILL (exit code 137)" in line


def test_a_killed_task_is_started_again_alone(rig, launch, tmp_path):
    program = """
        print("life", life, config["cluster"][role][index], flush=True)
        if role == "chief":
            wait_for("worker-1.back")
        elif (role, index) == ("worker", 1):
            host, port = config["cluster"][role][index].rsplit(":", 1)
            server = socket.create_server((host, int(port)))  # Its port is its own again.
            if life == 1:
                # What it has started must not outlive it.
                subprocess.Popen(["setsid", "sleep", "1000", here])
                os.kill(os.getpid(), signal.SIGKILL)
            touch("worker-1.back")
            serve_until_term()
        else:
            serve_until_term()
    """
    run = launch(rig, program, "--workers=2", "--ps=1")
    assert run.wait() == 0, run.err
    assert lives(tmp_path) == {"chief-0": 1, "ps-0": 1, "worker-0": 1, "worker-1": 2}
    said = [line for line in run.out if line.startswith("[worker 1] life")]
    assert said[0].replace("life 1", "life 2") == said[1]
    assert any("1 of 10 restarts" in line for line in run.err)
    gone(tmp_path, 10)


def test_a_budget_ends(rig, launch, tmp_path):
    program = """
        if role == "ps":
            os.kill(os.getpid(), signal.SIGSEGV)
        serve_until_term()
    """
    run = launch(rig, program, "--workers=1", "--ps=1", "--ps_restarts=1")
    assert run.wait() == 128 + signal.SIGSEGV
    assert lives(tmp_path)["ps-0"] == 2
    assert lives(tmp_path)["worker-0"] == 1
    assert any("have used their 1 restarts" in line for line in run.err)


def test_no_restart(rig, launch, tmp_path):
    program = """
        if role == "worker":
            sys.exit(75)
        serve_until_term()
    """
    run = launch(rig, program, "--workers=1", "--ps=1", "--no_restart", "--job_restarts=4")
    assert run.wait() == 75
    assert set(lives(tmp_path).values()) == {1}


def test_a_job_begins_again_as_a_whole(rig, launch, tmp_path):
    program = """
        print("life", life, config["cluster"][role][index], flush=True)
        if role == "chief":
            wait_for("ps-0.lives"), wait_for("worker-0.lives")
            while len(open(os.path.join(here, "worker-0.lives")).readlines()) < life:
                time.sleep(0.05)
            sys.exit(75 if life < 3 else 0)
        serve_until_term()
    """
    run = launch(rig, program, "--workers=1", "--ps=1", "--job_restarts=2")
    assert run.wait() == 0, run.err
    assert set(lives(tmp_path).values()) == {3}
    addresses = {tuple(line.split()[:2] + line.split()[-1:]) for line in run.out}
    assert len(addresses) == 3  # Ports are the same in every life.


def test_sigterm_is_passed_on(rig, launch, tmp_path):
    program = """
        def end(*_):
            print("saved", flush=True)
            sys.exit(143)
        signal.signal(signal.SIGTERM, end)
        print("up", flush=True)
        time.sleep(100)
    """
    run = launch(rig, program, "--workers=2", "--ps=1")
    for task in ("chief 0", "worker 0", "worker 1", "ps 0"):
        run.saw(rf"\[{task}\] up")
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143
    assert sum(line.endswith("] saved") for line in run.out) == 4
    assert set(lives(tmp_path).values()) == {1}
    gone(tmp_path, 10)


def test_who_does_not_listen_is_killed_after_the_grace(rig, launch, tmp_path):
    program = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 1000; : " + here])
        print("up", flush=True)
        time.sleep(1000)
    """
    run = launch(rig, program, "--workers=1", "--ps=1", "--grace=1")
    for task in ("chief 0", "worker 0", "ps 0"):
        run.saw(rf"\[{task}\] up")
    begun = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    assert time.monotonic() - begun < 60
    gone(tmp_path, 10)


def test_a_killed_launcher_leaves_nothing(rig, launch, tmp_path):
    program = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["setsid", "sh", "-c", "trap '' TERM HUP; sleep 1000; : " + here])
        if os.fork() == 0:  # A daemon: its parent is gone, its session its own.
            os.setsid()
            if os.fork() == 0:
                os.execvp("sh", ["sh", "-c", "sleep 1000; : " + here])
            os._exit(0)
        os.wait()
        print("up", flush=True)
        time.sleep(1000)
    """
    run = launch(rig, program, "--workers=2", "--ps=1", "--grace=100")
    for task in ("chief 0", "worker 0", "worker 1", "ps 0"):
        run.saw(rf"\[{task}\] up")
    assert len(rigs.living(tmp_path)) >= 12
    run.process.kill()
    gone(tmp_path, 10)


def test_jobs_do_not_collide(rig, launch, tmp_path):
    program = """
        host, port = config["cluster"][role][index].rsplit(":", 1)
        server = socket.create_server((host, int(port)))
        if role == "chief":
            touch(sys.argv[1] + ".up")
            wait_for("a.up"), wait_for("b.up")
        else:
            serve_until_term()
    """
    runs = [launch(rig, program, "--workers=2", "--ps=2", arguments=[name]) for name in ("a", "b")]
    assert [run.wait() for run in runs] == [0, 0], [run.err for run in runs]


def test_output_of_megabytes_without_an_end(rig, launch):
    program = """
        if role == "chief":
            sys.stdout.buffer.write(b"x" * 3_000_000 + b"\\xff\\n")
            sys.stdout.buffer.write(b"first\\rsecond\\rthird\\n")
            sys.stdout.write("no end")
        else:
            serve_until_term()
    """
    run = launch(rig, program, "--workers=1", "--ps=1")
    assert run.wait() == 0, run.err
    chief = [line.removeprefix("[chief 0] ") for line in run.out]
    assert sum(line.count("x") for line in chief) == 3_000_000
    assert chief[-2:] == ["third", "no end"]
    assert "\ufffd" in "".join(chief)


def test_no_secret_in_a_command_line(rig, launch, tmp_path):
    program = """
        assert os.environ["SECRET"] == "hush-hush"
        assert os.environ["OPEN"] == "1 2"
        touch(f"{role}.up")
        if role == "chief":
            wait_for("done")
        else:
            serve_until_term()
    """
    run = launch(
        rig,
        program,
        *("--workers=1", "--ps=1", "--env=SECRET", "--env=OPEN=1 2"),
        environ={"SECRET": "hush-hush"},
    )
    try:
        for role in ("chief", "worker", "ps"):
            deadline = time.monotonic() + 20
            while not (tmp_path / f"{role}.up").exists():
                assert time.monotonic() < deadline, run.err
                time.sleep(0.05)
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            if int(path.parent.name) != os.getpid():
                try:
                    assert b"hush-hush" not in path.read_bytes()
                except OSError:
                    continue
    finally:
        (tmp_path / "done").touch()
    assert run.wait() == 0, run.err


@pytest.mark.parametrize(
    ("flags", "program", "code", "said"),
    [
        ((), ["python", "-m", "no.such"], 127, "there is no module no"),
        ((), ["python", "none.py"], 127, "there is no file none.py in "),
        ((), ["no-such-program"], 127, "there is no program no-such-program in PATH"),
        (("--workers=0",), ["true"], 2, "--workers=0"),
        (("--env=TF_CONFIG=x",), ["true"], 2, "the launcher sets TF_CONFIG"),
        (("--memory_per_worker=much",), ["true"], 2, "write it like 8G"),
        (("--gpus_per_worker=3",), ["true"], 3, "2 workers with 3 GPU(s) each do not fit"),
        (("--pin=cores", "--cores_per_ps=9999"), ["true"], 3, "cores for"),
        (("--ports=1-0",), ["true"], 2, "is no range of ports"),
    ],
)
def test_what_cannot_run_is_told_first(rig, tmp_path, flags, program, code, said):
    run = rigs.Run(rig.command("--dry_run", *flags, program=program), tmp_path, {})
    try:
        begun = time.monotonic()
        assert run.wait(25) == code, run.err
        assert time.monotonic() - begun < 60
        (line,) = run.err
        assert line.startswith("error: ")
        assert said in line
    finally:
        run.end()


def test_a_dry_run_starts_nothing(rig, launch, tmp_path):
    run = launch(rig, ENDS, "--workers=2", "--ps=1", "--dry_run")
    assert run.wait() == 0, run.err
    assert not lives(tmp_path)
    assert [line.split()[0:2] for line in run.out[1:]] == [
        ["ps", "0"],
        ["worker", "0"],
        ["worker", "1"],
        ["chief", "0"],
    ]
    assert all(any(host in line for host in rig.hosts) for line in run.out[1:])


@pytest.mark.parametrize("victim", ["agent", "keeper"])
def test_who_holds_tasks_may_be_killed(launch, tmp_path, victim):
    """What a killed keeper held is ended by the agent, and what a killed agent held by keepers."""
    program = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["setsid", "sh", "-c", "trap '' TERM; sleep 1000; : " + here])
        print("up", os.getppid(), flush=True)
        time.sleep(1000)
    """
    run = launch(rigs.Local(), program, "--workers=1", "--ps=1", "--no_restart", "--grace=2")
    for task in ("chief 0", "worker 0", "ps 0"):
        line = run.saw(rf"\[{task}\] up")
    keeper = int(line.split()[-1])
    stat = pathlib.Path(f"/proc/{keeper}/stat").read_text()
    agent = int(stat.rpartition(")")[2].split()[1])
    os.kill({"agent": agent, "keeper": keeper}[victim], signal.SIGKILL)
    gone(tmp_path, 10)
    assert run.wait() == {"agent": 75, "keeper": 137}[victim], run.err
