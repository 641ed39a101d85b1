"""Which text files a model reads."""

import glob
import os
import sysconfig

from tfps import errors


def find(pattern: str) -> list[str]:
    """The files that a glob, a folder (searched recursively) or a path stands for.

    Raises:
      DataError: there is no such file.
    """
    if os.path.isdir(pattern):
        names = glob.glob(os.path.join(glob.escape(pattern), "**"), recursive=True)
    else:
        names = glob.glob(os.path.expanduser(pattern), recursive=True)
    files = sorted(n for n in names if os.path.isfile(n))
    if not files:
        raise errors.DataError(
            f"--data={pattern} matches no file; give a folder or a quoted glob like 'src/**/*.py'"
        )
    return files


def standard_library() -> list[str]:
    """The sources of Python's standard library, without its tests."""
    root = sysconfig.get_paths()["stdlib"]
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = glob.glob(os.path.join(glob.escape(root), "**", "*.py"), recursive=True)
    return sorted(f for f in files if not skipped & set(os.path.relpath(f, root).split(os.sep)))
