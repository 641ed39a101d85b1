"""Keeps TensorFlow's C++ code from writing to standard error, unless the user asks for its notes.

An embedded server would write a hundred lines about servers that start, variables that end and
calls that are cancelled, and with an error hundreds more; what matters of them is raised in Python.
The environment variable `TF_CPP_MIN_LOG_LEVEL` is how a user asks: "0" for everything.

This module is imported before any other one, because TensorFlow reads the variable when it is
loaded.
"""

import contextlib
import ctypes
import importlib.util
import os
import pathlib
import re
import sys

VARIABLE = "TF_CPP_MIN_LOG_LEVEL"
LEVEL = 3  # Only what ends the process.


def quiet() -> None:
    """Sets the level, in this process and for those that it starts, if the user has set none."""
    if _is_set_by_user():
        return
    os.environ[VARIABLE] = str(LEVEL)
    if "tensorflow" in sys.modules:
        # It has read the variable already. Its log is that of Abseil, which can be told later.
        with contextlib.suppress(OSError, AttributeError, TypeError):
            _set_level(LEVEL)


def _is_set_by_user() -> bool:
    """Whether the variable is there, and not only because JAX has set it.

    Keras imports JAX where it is installed, and JAX sets the variable to 1 for itself.
    """
    if os.environ.get(VARIABLE) != "1" or "jax" not in sys.modules:
        return VARIABLE in os.environ
    with contextlib.suppress(OSError):
        return f"{VARIABLE}=".encode() in pathlib.Path("/proc/self/environ").read_bytes()
    return False


def _set_level(level: int) -> None:
    """Calls `absl::SetMinLogLevel` in TensorFlow's library.

    Raises:
      OSError: the library, or the header that names Abseil's version, is not where it was.
      AttributeError: the library has no such function.
      TypeError: the header does not name the version.
    """
    spec = importlib.util.find_spec("tensorflow")
    assert spec is not None and spec.origin is not None
    home = pathlib.Path(spec.origin).parent
    options = (home / "include" / "absl" / "base" / "options.h").read_text()
    found = re.search(r"#define ABSL_OPTION_INLINE_NAMESPACE_NAME (\w+)", options)
    version = found[1]  # type: ignore[index]
    # The library is loaded already; loading it by itself would run its constructors.
    library = ctypes.CDLL(
        str(home / "libtensorflow_framework.so.2"), mode=os.RTLD_NOLOAD | os.RTLD_LAZY
    )
    name = f"_ZN4absl{len(version)}{version}14SetMinLogLevelENS0_18LogSeverityAtLeastE"
    function = getattr(library, name)
    function.argtypes, function.restype = [ctypes.c_int], None
    function(level)


quiet()
