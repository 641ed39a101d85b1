"""The end of this process: no thread of ours is within TensorFlow while Python is taken apart.

A daemon thread that comes back from C++ then is ended by CPython (up to 3.13) in a way that C++
does not allow, and a program that has succeeded ends with SIGABRT.
"""

import atexit
import sys
import threading
import time
import types

# How the names of threads begin that call TensorFlow and that nobody waits for.
PREFIX = "tfps-"

# s to wait for them. A call to a server that hangs will not come back at all.
_LIMIT = 5.0

_LOOK = 0.01

_begun = threading.Event()


def has_begun() -> bool:
    """Whether the process ends: whoever calls TensorFlow now and then does so no more."""
    return _begun.is_set()


@atexit.register
def _settle() -> None:
    _begun.set()
    deadline = time.monotonic() + _LIMIT
    while _busy() and time.monotonic() < deadline:
        time.sleep(_LOOK)


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
