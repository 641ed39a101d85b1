"""The agent's parts: lines, ports, and what it finds out about its host."""

import os
import socket
import stat
import sys

import pytest
from hypothesis import given, strategies as st

from launch import checks, host
from launch.agent import facts, lines, ports, serving
from tfps.cluster import sockets

TEXT = st.binary(max_size=60).map(
    lambda b: b.translate(bytes(b"\r\n\xc3\xa9ab"[i % 6] for i in range(256)))
)


def shown(pieces):
    """What a log would hold: texts, and line feeds where a line has ended."""
    return b"".join(text + (b"\n" if end == "\n" else b"") for text, end in pieces)


@given(st.lists(TEXT, max_size=12))
def test_lines_lose_nothing_but_what_is_overwritten(chunks):
    data = b"".join(chunks).replace(b"\r", b"")
    splitter, found = lines.Lines(), []
    at = 0
    for chunk in chunks:
        piece = data[at : at + len(chunk)]
        at += len(chunk)
        found += splitter.feed(piece, now=0.0)
    found += splitter.feed(data[at:], now=0.0) + splitter.rest()
    assert shown(found).rstrip(b"\n") == data.rstrip(b"\n")
    assert not splitter.waits


@given(st.lists(TEXT, max_size=12))
def test_where_output_is_cut_does_not_matter(chunks):
    def cut(pieces):
        splitter = lines.Lines()
        found = [f for piece in pieces for f in splitter.feed(piece, now=0.0)]
        return found + splitter.rest()

    whole = b"".join(chunks)
    assert cut([whole]) == cut([bytes([b]) for b in whole]) == cut(chunks)


def test_bars_are_shown_once_a_second_and_at_the_end():
    splitter = lines.Lines()
    found = []
    for i in range(100):
        found += splitter.feed(b"%d%%\r" % i, now=i * 0.1)
    found += splitter.feed(b"done\n", now=10.0)
    assert len(found) <= 12
    assert found[0] == (b"0%", "\r")
    assert found[-1] == (b"done", "\n")


def test_the_beginning_of_a_line_is_shown_when_nothing_follows():
    splitter = lines.Lines()
    assert splitter.feed(b"Continue? ", now=0.0) == []
    assert splitter.waited(0.5) == []
    assert splitter.waited(1.5) == [(b"Continue? ", "")]
    assert splitter.feed(b"yes\n", now=2.0) == [(b"yes", "\n")]


def test_characters_are_not_cut():
    splitter = lines.Lines()
    found = splitter.feed("é".encode() * 100_000, now=0.0) + splitter.rest()
    assert len(found) > 2
    assert "".join(text.decode() for text, _ in found) == "é" * 100_000


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_kept_port_is_for_servers_only(option):
    held = ports.keep_port(0)
    port = held.getsockname()[1]
    try:
        sockets.require_free(f"127.0.0.1:{port}", "worker 0")
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, option, 1)
            server.bind(("", port))
            server.listen()
            with pytest.raises(OSError, match="in use"):
                ports.keep_port(port)
        again = ports.keep_port(port)  # As after a restart of the task.
        again.close()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", port))
    finally:
        held.close()


def test_kept_ports_are_not_given_to_others():
    """Not even to those who ask for any port with the same options."""
    held = [ports.keep_port(0) for _ in range(20)]
    others = []
    try:
        for i in range(4000):
            sock = socket.socket()
            if i % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                sock.bind(("", 0))
            except OSError:
                sock.close()
                break  # No port is left.
            others.append(sock)
            if len(others) > 500:
                others.pop(0).close()
            assert sock.getsockname()[1] not in {h.getsockname()[1] for h in held}
    finally:
        for sock in (*held, *others):
            sock.close()


class Child:
    """What an agent has of a task; it notes what its keeper is told."""

    def __init__(self, name, request):
        self.name, self.request, self.is_stopping, self.told = name, request, False, []

    def tell(self, word, value):
        self.told.append((word, value))
        self.is_stopping = self.is_stopping or word == "stop"


@pytest.fixture
def agent(monkeypatch):
    """`agent(what, **values)`: what an agent, whose tasks are no processes, answers."""
    made = object.__new__(serving.Agent)
    made._children, made.started, numbers, said = {}, [], iter(range(100)), []

    def start(name, request):
        made.started.append(name)
        return Child(name, request)

    monkeypatch.setattr(serving, "start", start)
    made._send = said.append

    def ask(what, **values):
        made._answer({"id": next(numbers), "do": what, **values})
        return said.pop()

    ask.started = made.started
    return ask


def test_a_task_that_runs_is_not_started_twice(agent):
    """The launcher asks again when the answer was late."""
    command = {"task": "chief 0", "argv": ["true"], "environ": {"A": "1"}}
    first, second = agent("start", **command), agent("start", **command)
    assert "error" not in first and "error" not in second and second["id"] == 1
    assert agent.started == ["chief 0"]
    assert "runs already" in agent("start", **{**command, "environ": {"A": "2"}})["error"]


def test_a_task_that_was_told_to_end_is_not_taken_for_a_new_one(agent):
    command = {"task": "chief 0", "argv": ["true"], "environ": {}}
    agent("start", **command)
    agent("stop", grace=1.0)
    assert "was told to end" in agent("start", **command)["error"]


def fake_smi(folder, monkeypatch, text):
    """Puts an `nvidia-smi` that prints a text first on PATH."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


@pytest.mark.processes
def test_gpus_are_those_of_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = '#!/bin/sh\ncase "$*" in *--query-gpu=index*csv,noheader*) echo 0; echo 1;; esac\n'
    fake_smi(tmp_path, monkeypatch, program)
    assert facts.gpus() == (["0", "1"], None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-5")  # As a scheduler sets it.
    assert facts.gpus() == (["1", "GPU-5"], None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert facts.gpus() == ([], None)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo 'NVIDIA-SMI has failed'; exit 9", "ended with exit code 9: NVIDIA-SMI has failed"),
        ("exec sleep 60", "did not end within 0.3 s"),
        ("echo 'No devices were found'; exit 6", None),
    ],
)
def test_a_driver_that_fails(tmp_path, monkeypatch, text, why):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(facts, "_SMI", 0.3)
    fake_smi(tmp_path, monkeypatch, f"#!/bin/sh\n{text}\n")
    assert facts.gpus() == ([], why and f"nvidia-smi {why}")


def test_nobody_is_given_up_while_gpus_are_counted():
    assert facts._SMI < host.PROBE < host.PATIENCE
    assert host.CONNECT + host.PROBE < checks.LIMIT


def test_cores_of_nodes(tmp_path):
    allowed = sorted(os.sched_getaffinity(0))
    for name, cores in (("node0", "0-63"), ("node10", "64-70,72"), ("power", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(f"{cores}\n")
    found = facts.numa_nodes(str(tmp_path))
    assert sorted(core for node in found for core in node) == [c for c in allowed if c != 71]
    assert facts.numa_nodes(str(tmp_path / "none")) == [allowed]
    assert list(facts.cores_of("0-2,7")) == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["python", "-m", "package"], None),
        (["python", "-m", "package.program"], None),
        (["python", "-u", "-X", "dev", "-m", "json.tool"], None),
        (["python", "script.py", "-m", "none"], None),
        (["python", "-c", "pass"], None),
        (["true"], None),
        (["./script.py"], "there is no program ./script.py"),  # It is not executable.
        (["python", "-m", "package.none"], "there is no module package.none"),
        (["python", "-m", "bare"], "the package bare has no __main__.py"),
        (["python", "other.py"], "there is no file other.py"),
        (["no-such"], "there is no program no-such in PATH"),
    ],
)
def test_what_is_missing(tmp_path, argv, why):
    for path in ("package/__init__.py", "package/__main__.py", "package/program.py", "script.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        # To find out must not run anything of the user's.
        (tmp_path / path).write_text("raise SystemExit('imported')")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "__init__.py").touch()
    if argv[0] == "python":
        argv = [sys.executable, *argv[1:]]
    found = facts.missing(argv, str(tmp_path), {})
    assert (found is None) if why is None else found.startswith(why)
