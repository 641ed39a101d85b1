"""Text files of `--data`, and those that every Python has."""

import glob
import os
import sysconfig
from collections.abc import Sequence

from tfps import errors

_BEGIN = 1024  # bytes that tell text from other files


def find(patterns: str) -> list[str]:
    """The files that a glob, a folder (searched recursively) or a path stands for.

    Args:
      patterns: one of these, or several with commas between them.

    Raises:
      DataError: there is no such file.
    """
    several = [patterns] if os.path.exists(patterns) else patterns.split(",")
    return sorted({name for pattern in several for name in _find(pattern)})


def _find(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        names = glob.glob(os.path.join(glob.escape(pattern), "**"), recursive=True)
    else:
        names = glob.glob(os.path.expanduser(pattern), recursive=True)
    files = [n for n in names if os.path.isfile(n)]
    if not files:
        raise errors.DataError(
            f"--data={pattern} matches no file; give a folder or a quoted glob like 'src/**/*.py'"
        )
    return files


def read(files: Sequence[str], flag: str = "data") -> dict[str, bytes]:
    """Reads files: path -> content, of the files that are not empty.

    Args:
      files: their paths.
      flag: the flag that named the files, for errors.

    Raises:
      DataError: a file is binary or cannot be read, or all files are empty.
    """
    texts = {}
    for name in files:
        try:
            with open(name, "rb") as f:
                content = f.read()
        except OSError as e:
            raise errors.DataError(f"--{flag}: cannot read {name}: {e.strerror.lower()}") from e
        if (zero := content.find(b"\0")) >= 0:
            raise errors.DataError(
                f"--{flag}: {name} is binary (a zero byte at offset {zero}); give a glob that "
                "matches text files only"
            )
        if content:
            texts[name] = content
    if not texts:
        raise errors.DataError(
            f"--{flag}: {files[0]}"
            + (f" and {len(files) - 1} more are" if len(files) > 1 else " is")
            + " empty; there is nothing to read"
        )
    return texts


def check(files: Sequence[str]) -> None:
    """Looks at the beginnings of files that workers will read.

    Args:
      files: paths.

    Raises:
      DataError: a file cannot be read, or is binary.
    """
    for name in files:
        try:
            with open(name, "rb") as f:
                begin = f.read(_BEGIN)
        except OSError as e:
            raise errors.DataError(f"--data: cannot read {name}: {e.strerror.lower()}") from e
        if (zero := begin.find(b"\0")) >= 0:
            raise errors.DataError(
                f"--data: {name} is binary (a zero byte at offset {zero}); give a glob that "
                "matches text files only"
            )


def standard_library() -> list[str]:
    """The sources of Python's standard library, without its tests."""
    root = sysconfig.get_paths()["stdlib"]
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = glob.glob(os.path.join(glob.escape(root), "**", "*.py"), recursive=True)
    return sorted(f for f in files if not skipped & set(os.path.relpath(f, root).split(os.sep)))
