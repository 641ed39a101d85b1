"""The exit codes of tasks, by which whoever started them knows whether to start them again.

| code | meaning |
|---|---|
| 0 | done |
| 1 | the program's own error; the same again would fail again |
| 2 | a flag or an argument is wrong |
| 3 | the specification of the cluster is wrong |
| 75 | a peer was lost or did not come: start me again |
| 143 | ended by SIGTERM, in order |

A program that connects by TF_CONFIG ends with these codes when an error of tfps ends it. The
launchers have the same table.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from tfps import errors

DONE = 0
FAILED = 1
FLAGS = 2
CLUSTER = 3
LOST = 75
TERMINATED = 143

# The first class that fits says the code.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.TaskLost, LOST),
    (errors.ChiefLost, LOST),
    (errors.Superseded, LOST),
    (errors.StartupTimeout, LOST),
    (errors.ClusterConfigError, CLUSTER),
    (errors.PortInUse, CLUSTER),
    (errors.DataError, FAILED),
    (errors.ConfigError, FLAGS),
)


def of(error: BaseException) -> int:
    """Returns the exit code of a process that an error ends."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


_noted: list[int] = []  # The code of what ends this process.

_told = threading.Event()  # whether SIGTERM has come in an `on_sigterm`


@contextlib.contextmanager
def on_sigterm() -> Iterator[None]:
    """Raises SystemExit with 143 where SIGTERM finds the main thread, so that `finally` is run.

    An exception raised by a handler can be lost: CPython drops what is raised in the callback of a
    weak reference or in `__del__`, and a `threading.Condition` that is interrupted at the wrong
    moment raises RuntimeError in its stead (3.11). The latter ends with 143 as well; for the former
    a loop calls `end_if_told`.

    Does nothing in another thread, or where the program has a handler of its own.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return

    def end(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The way out is not left again.
        _told.set()
        terminate()

    end.tfps = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception as error:
        if _told.is_set() and _comes_from_sigterm(error):
            raise SystemExit(TERMINATED) from error
        raise
    finally:
        _told.clear()
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _comes_from_sigterm(error: BaseException | None) -> bool:
    """Whether an error was raised while the SystemExit of `terminate` was under way."""
    while error is not None:
        if isinstance(error, SystemExit) and error.code == TERMINATED:
            return True
        error = error.__context__
    return False


def end_if_told() -> None:
    """Raises the SystemExit of a SIGTERM that came within an `on_sigterm`, if that was lost.

    Raises:
      SystemExit: it was; the code is 143.
    """
    if _told.is_set():
        terminate()


def terminate() -> NoReturn:
    """Raises the SystemExit by which a process ends that was told to by SIGTERM."""
    _noted.append(TERMINATED)
    raise SystemExit(TERMINATED)


@contextlib.contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Lets SIGTERM be noted instead of ending the main thread where it is; the second one ends it.

    In another thread, or where the program has a handler of its own, nothing is noted.

    Yields:
      A function that returns whether the signal has come.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not (
        before == signal.SIG_DFL or hasattr(before, "tfps")
    ):
        yield lambda: False
        return
    told: list[int] = []

    def note(signum: int, frame: object) -> None:
        told.append(signum)
        if len(told) > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            terminate()

    signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(told)
    finally:
        if signal.getsignal(signal.SIGTERM) is note:
            signal.signal(signal.SIGTERM, before)


def note(code: int) -> None:
    """Notes that a program ends with a code that is no success, though by no exception."""
    _noted.append(code)


def is_noted() -> bool:
    """Whether an error or a signal is what ends this process."""
    return bool(_noted) or hasattr(sys, "last_value")


def follow() -> None:
    """From now on, an uncaught error of tfps ends this process with its code instead of 1.

    The error is printed as always. What `atexit` was given later than now still runs.
    """
    if hasattr(sys.excepthook, "tfps"):
        return
    shown = sys.excepthook

    def note(kind, error, traceback) -> None:
        shown(kind, error, traceback)
        _noted.append(of(error))

    note.tfps = True  # type: ignore[attr-defined]
    sys.excepthook = note
    atexit.register(_leave)


def _leave() -> None:
    # To take the interpreter apart would wait for the threads of TensorFlow's server.
    if _noted and _noted[-1] != FAILED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_noted[-1])
