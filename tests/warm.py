"""Python programs in processes that begin with TensorFlow and Keras imported.

The import takes 2 to 5 s of processor time, which is most of what a small program takes. These
processes are forked, by the standard library's fork server, from one that has imported both and
used neither. `TFPS_TEST_FORK=0` starts Python anew for each.
"""

import atexit
import contextlib
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence

from tfps.cluster import anew

FORKS = os.environ.get("TFPS_TEST_FORK", "1") != "0"
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tensorflow", "keras", "tfps"])


class Forked:
    """A running program, with as much of `subprocess.Popen` as tests use."""

    def __init__(self, arguments: Sequence[str], cwd, env: Mapping[str, str], out, err):
        self._process = _server.Process(
            target=_become, args=(list(arguments), str(cwd), dict(env), str(out), str(err))
        )
        self._process.start()
        self.pid = self._process.pid
        self.kill, self.terminate = self._process.kill, self._process.terminate

    @property
    def returncode(self) -> int | None:
        """As of `Popen`: negative for a signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Returns the exit code, or None while the program runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; returns the exit code.

        Raises:
          subprocess.TimeoutExpired: the program went on for `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode


def start(arguments: Sequence[str], cwd, env: Mapping[str, str], out, err=None):
    """Starts a program.

    Args:
      arguments: of Python: `-c` and a program, `-m` and a module, or a file; and the program's own.
      cwd: folder in which it runs.
      env: environment variables.
      out: file to which standard output goes.
      err: file to which standard error goes; None for `out`.
    """
    for path in (out, err or out):
        pathlib.Path(path).touch()
    if FORKS:
        return Forked(arguments, cwd, env, out, err or out)
    with contextlib.ExitStack() as files:
        to = files.enter_context(open(out, "ab"))
        errors = files.enter_context(open(err, "ab")) if err else subprocess.STDOUT
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=errors,
        )


def run(arguments: Sequence[str], cwd, env: Mapping[str, str], folder: pathlib.Path, timeout=100):
    """Runs a program to its end, as `subprocess.run` does; `folder` is for what it writes."""
    out, err = (folder / f"{name}-{time.monotonic_ns()}.txt" for name in ("stdout", "stderr"))
    program = start(arguments, cwd, env, out, err)
    try:
        code = program.wait(timeout)
    finally:
        if program.poll() is None:
            program.kill()
            program.wait()
    return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _become(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Lets this new process be a Python that was started with these arguments."""
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    anew._folder = cwd
    # The program may start itself anew by its command line.
    sys.orig_argv = [sys.executable, *arguments]
    multiprocessing.process._parent_process = None
    code = _exit_code(arguments)
    # As at Python's own end, which processes of `multiprocessing` leave out.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _exit_code(arguments: list[str]) -> int:
    try:
        _execute(arguments)
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return e.code or 0
        print(e.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _execute(arguments: list[str]) -> None:
    how, *rest = arguments
    if how == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(pathlib.Path(how).resolve().parent))
        runpy.run_path(how, run_name="__main__")
