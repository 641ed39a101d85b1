"""What the commands share that compare systems over links: flags, their checks, and signals."""

import os
import signal
from collections.abc import Mapping, Sequence

from absl import flags

from benchmarks.wire import hosts
from benchmarks.wire.sizes import WORKERS
from benchmarks.wire.systems import System, available, select

FLAGS = flags.FLAGS

# The flags belong to the command that defines them, so its --help shows them.
flags.disclaim_key_flags()


def define_flags(
    bandwidth: list[str], none: str, rounds: int, seconds: float, timeout: float, output: str
) -> None:
    """Defines the flags of a command.

    Args:
      bandwidth: the default of --bandwidth.
      none: what a bandwidth of `none` means.
      rounds: the default of --rounds.
      seconds: the default of --seconds.
      timeout: the default of --timeout, in seconds.
      output: the default of --output.
    """
    flags.DEFINE_list(
        "bandwidth",
        bandwidth,
        f"Of each host's link, both ways, as tc writes it; `none` is {none}.",
    )
    flags.DEFINE_multi_string(
        "systems", [], "Only those whose name or family contains this; may be given more than once."
    )
    flags.DEFINE_integer("rounds", rounds, "Turns of each system at each place.", lower_bound=1)
    flags.DEFINE_integer(
        "warmup", 2, "Steps of a worker before a turn is timed, at most.", lower_bound=1
    )
    flags.DEFINE_float("seconds", seconds, "About how long a turn is timed.")
    flags.DEFINE_integer("least_steps", 3, "Steps that a turn times at least.", lower_bound=1)
    flags.DEFINE_integer(
        "threads",
        max(1, (os.cpu_count() or 1) // WORKERS),
        "Compute threads of each process; the default shares this machine's cores among the "
        "workers.",
        lower_bound=1,
    )
    flags.DEFINE_float("timeout", timeout, "Seconds that one start or turn may take.")
    flags.DEFINE_string("output", output, "Folder for logs and results.")


def checked(
    links: Sequence[str], systems: Sequence[System], needs: Mapping[str, str]
) -> list[System]:
    """Checks bandwidths, and returns the systems that --systems selects and that can run here.

    Args:
      links: bandwidths, or "none".
      systems: all systems.
      needs: family -> the module that it needs.

    Raises:
      ValueError: a bandwidth cannot be read, or no system is selected.
    """
    for link in links:
        if link != "none":
            hosts.bits_per_second(link)
    chosen = available(select(FLAGS.systems, systems), needs)
    if not chosen:
        known = ", ".join(s.name for s in systems)
        raise ValueError(f"--systems={FLAGS.systems} selects none of: {known}")
    return chosen


def limited_links() -> list[str]:
    """Returns the bandwidths of --bandwidth that are limits.

    Where no network namespaces can be made, it returns an empty list and prints why.
    """
    limited = [link for link in FLAGS.bandwidth if link != "none"]
    if limited and (why_not := hosts.why_not()):
        print(f"no network namespaces: {why_not}; loopback takes the place of {', '.join(limited)}")
        return []
    return limited


def let_signals_interrupt() -> None:
    """Makes SIGINT and SIGTERM raise `KeyboardInterrupt`, so that what was measured is written."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number, frame) -> None:
    """Ends the run on the first signal, and ignores later signals during the clean-up."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt
