"""`launch local`: every task is a process on this machine."""

import os
import sys
from collections.abc import Sequence

from absl import flags

from launch import flags as common
from launch.hosts import HostsLauncher
from launch.launcher import Launcher
from launch.machine import Machine

FLAGS = flags.FlagValues()  # Those of the launcher, and then those of all launchers.

flags.DEFINE_enum(
    "pin",
    "none",
    ["none", "cores", "numa"],
    "What each task is pinned to: cores that no other task has, or the cores of one NUMA node.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "ports",
    None,
    "Ports to choose from, such as 20000-20999. Default: free ones.",
    flag_values=FLAGS,
)
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
    return HostsLauncher(
        [here], argv, common.environ(), common.ports("ports", FLAGS.ports), FLAGS.pin
    )
