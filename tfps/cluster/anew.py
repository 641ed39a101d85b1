"""Starts this process anew in its place: the same program, process id and port, an empty memory."""

import contextlib
import multiprocessing
import os
import signal
import sys

# Set in the environment of a process that was started anew.
_VARIABLE = "TFPS_ANEW"

_folder = os.getcwd()  # Paths on the command line may be relative to it.


class Anew(Exception):
    """This server's memory is of no use to a chief any more; the message says why."""


def is_possible() -> bool:
    """Returns whether this process is a program of its own.

    A process of `multiprocessing` runs a function of another process, which cannot be run again.
    """
    return multiprocessing.parent_process() is None and bool(sys.orig_argv)


def was_started() -> bool:
    """Returns whether this process was started anew; the next call says no."""
    return os.environ.pop(_VARIABLE, None) is not None


def start() -> None:
    """Starts this process anew, with the command line that it was started with.

    TensorFlow can neither end a server within a process nor free what earlier chiefs have left in
    its memory.
    """
    # Our handler goes with this program, and what it notes: SIGTERM now ends the process at once.
    if hasattr(signal.getsignal(signal.SIGTERM), "tfps"):
        with contextlib.suppress(ValueError):  # This is not the main thread.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ[_VARIABLE] = "1"
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError):
        os.chdir(_folder)
    _close_at_start()
    os.execv(sys.executable, sys.orig_argv)


def _close_at_start() -> None:
    """Lets no descriptor but the standard ones outlive this program: least of all the port's."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                with contextlib.suppress(OSError):
                    os.set_inheritable(int(name), False)
