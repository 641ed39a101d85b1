"""The end of this process: no thread of ours is within TensorFlow while Python is taken apart.

A daemon thread that comes back from C++ then is ended by CPython (up to 3.13) in a way that C++
does not allow, and a program that has succeeded ends with SIGABRT.
"""

import atexit
import sys
import threading
import time
import types
from collections.abc import Callable

# How the names of threads begin that call TensorFlow and that nobody waits for.
PREFIX = "tfps-"

# s to wait for them; s to wait after the connections to servers are shut, by which their calls
# fail; and s after which connections that were made meanwhile are shut as well.
_LIMIT, _CUT_LIMIT, _AGAIN = 5.0, 20.0, 1.0

_LOOK = 0.01

_begun = threading.Event()
_cuts: list[Callable[[], None]] = []


def has_begun() -> bool:
    """Whether the process ends: whoever calls TensorFlow now and then does so no more."""
    return _begun.is_set()


def cut_by(cut: Callable[[], None]) -> None:
    """Has a function called at the end if a call to a server does not come back.

    Args:
      cut: shuts connections to servers. It may be called several times.
    """
    _cuts.append(cut)


@atexit.register
def _settle() -> None:
    _begun.set()
    limit = time.monotonic() + _LIMIT + _CUT_LIMIT
    if _came_back(_LIMIT):
        return
    while time.monotonic() < limit:
        for cut in _cuts:
            cut()
        if _came_back(_AGAIN):
            return


def _came_back(seconds: float) -> bool:
    """Waits until all threads have come back; whether they have."""
    deadline = time.monotonic() + seconds
    while (busy := _busy()) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return not busy


def _busy() -> bool:
    frames = sys._current_frames()
    ours = [t.ident for t in threading.enumerate() if t.daemon and t.name.startswith(PREFIX)]
    return any(_is_within(frames[i]) for i in ours if i in frames)


def _is_within(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("tensorflow."):
            return True
        frame = frame.f_back
    return False
