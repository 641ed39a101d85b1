"""Runs a binary of `models/` within the test's process."""

import contextlib
from collections.abc import Iterator
from typing import Any

from absl import flags
from absl.testing import flagsaver

from models import program
from models.parameter_servers import ParameterServers


def run(binary: Any, capsys: Any, *args: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a binary's main function.

    Args:
      binary: the module `models.<name>.__main__`.
      capsys: pytest's fixture.
      *args: the command line.
    """
    with flagsaver.flagsaver():
        program.set_defaults(binary.DATA, **binary.DEFAULTS)
        flags.FLAGS(["program", *args])
        code = binary.main(["program"])
    return code, *capsys.readouterr()


def train(binary: Any, strategy: Any, *args: str) -> None:
    """Trains on servers that are there already, by a binary's `train`.

    Args:
      binary: the module `models.<name>.__main__`.
      strategy: of the fixture `connect`.
      *args: the command line.
    """
    with flagsaver.flagsaver():
        program.set_defaults(binary.DATA, **binary.DEFAULTS)
        flags.FLAGS(["program", *args])
        binary.train(lambda: ParameterServers(strategy))


@contextlib.contextmanager
def given(*args: str) -> Iterator[None]:
    """Within the context, flags have the values of a command line; afterwards their old ones.

    Args:
      *args: the command line.
    """
    with flagsaver.flagsaver():
        flags.FLAGS(["program", *args])
        yield
