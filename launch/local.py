"""`launch local`: every task is a process on this machine."""

import os
import sys
from collections.abc import Sequence

from absl import flags

from launch import flags as common, host_flags
from launch.launcher import Launcher
from launch.machine import Machine

FLAGS = flags.FlagValues()  # Those of the launcher, and then those of all launchers.

host_flags.define(FLAGS)
FLAGS.append_flag_values(common.FLAGS)


def make(argv: Sequence[str]) -> Launcher:
    """Returns the launcher that the flags describe.

    Args:
      argv: the program and its arguments.

    Raises:
      FlagError: a flag's value is wrong.
    """
    here = Machine(
        name="localhost",
        address="127.0.0.1",
        python=sys.executable,
        folder=os.getcwd(),
        remote=False,
    )
    return host_flags.launcher([here], argv, FLAGS)
