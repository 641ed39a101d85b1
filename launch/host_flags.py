"""The flags of launchers whose tasks run on hosts with agents, and the launcher that they give."""

import re
from collections.abc import Sequence

from absl import flags

from launch import errors, flags as common
from launch.hosts import HostsLauncher
from launch.machine import Machine

# The flags belong to the launcher for which they are defined, so its --help shows them.
flags.disclaim_key_flags()


def define(values: flags.FlagValues) -> None:
    """Defines --pin and --ports; called by the module of a launcher, for its own flags.

    Args:
      values: the launcher's flags.
    """
    flags.DEFINE_enum(
        "pin",
        "none",
        ["none", "cores", "numa"],
        "What each task is pinned to, of what the job has on its host: cores that no other task "
        "has, or the cores of one NUMA node.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "ports",
        None,
        "Ports to choose from, such as 20000-20999. Default: free ones.",
        flag_values=values,
    )


def launcher(
    machines: Sequence[Machine], argv: Sequence[str], values: flags.FlagValues
) -> HostsLauncher:
    """Returns the launcher of a job on hosts.

    Args:
      machines: the hosts, in the order in which they are filled.
      argv: the program and its arguments.
      values: the launcher's flags, for which `define` was called.

    Raises:
      FlagError: a flag's value is wrong.
    """
    return HostsLauncher(machines, argv, common.environ(), _ports(values.ports), values.pin)


def _ports(text: str | None) -> range:
    """Returns the numbers of a text such as "20000-20999"; empty for None.

    Raises:
      FlagError: it is no range of ports.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match or not 0 < int(match[1]) <= int(match[2]) < 65536:
        raise errors.FlagError(f"--ports={text} is no range of ports; write it like 20000-20999")
    return range(int(match[1]), int(match[2]) + 1)
