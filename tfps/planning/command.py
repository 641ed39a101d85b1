"""The command `python -m tfps.plan`: its flags, and what it prints."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from tfps import errors, exit_codes
from tfps.planning import report
from tfps.planning.fleet import Fleet
from tfps.planning.search import plan


def defined() -> flags.FlagValues:
    """The flags of the command, apart from those of a program that imports it."""
    own = flags.FlagValues()

    def define(kind, name, default, text, **more):
        kind(name, default, text, flag_values=own, **more)

    string, integer, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    define(string, "profile", None, "File of a profile; --profile of a binary writes one.")
    define(integer, "workers", 2, "Workers.", lower_bound=1)
    define(integer, "ps", 2, "Parameter servers.", lower_bound=1)
    define(string, "bandwidth", "10gbit", "Of each host's link; 50mbit/10mbit is down and up.")
    define(string, "worker_bandwidth", None, "Of the workers' links, if theirs differ.")
    define(string, "latency", "0.2ms", "Of a message from host to host.")
    define(string, "worker_latency", None, "Of a message from or to a worker, if it differs.")
    define(number, "cores", None, "Of each host. Default: as many as where the profile is from.")
    define(string, "slow", None, "Uneven workers: 0.1@10x is a tenth that takes ten times as long.")
    define(number, "leaving", 0.0, "Share of the workers that is lost in an hour.")
    define(number, "returning", 15.0, "Seconds until a lost worker is back or replaced.")
    define(number, "snapshots", None, "Seconds from one snapshot to the next. Default: none.")
    define(string, "consistency", "async", "The policy that training is to follow.")
    define(flags.DEFINE_boolean, "copies", True, "Whether LocalSteps may be recommended.")
    define(flags.DEFINE_list, "codecs", None, "Codecs that may be used. Default: all measured.")
    define(flags.DEFINE_boolean, "hooks", False, "Whether callbacks have hooks for batches.")
    define(integer, "top", report.TOP, "How many of the fastest settings are shown.", lower_bound=1)
    define(string, "json", None, "File for the plan as JSON.")
    define(string, "plot", None, "File for a plot, .png or .svg; needs the extra `plan`.")
    define(flags.DEFINE_boolean, "help", False, "Shows the flags.", short_name="h")
    return own


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, 2 if a flag is wrong.

    Args:
      argv: the name of the program and its arguments; None for those of the process.
    """
    own = defined()
    try:
        rest = own(list(sys.argv if argv is None else argv))
        if own.help:
            print("Predicts how fast a model trains on a cluster, and recommends a setting.\n")
            print(own.main_module_help() or own.get_help())
            return exit_codes.DONE
        if len(rest) > 1:
            raise errors.ConfigError(f"unexpected argument {rest[1]!r}; --help lists the flags")
        if own.profile is None:
            raise errors.ConfigError(
                "--profile is missing; measure one, such as by python -m models.gpt "
                "--profile=profile.json, and give its path"
            )
        _run(own)
    except flags.Error as e:
        print(f"error: {e}; --help lists the flags", file=sys.stderr)
        return exit_codes.FLAGS
    except errors.Error as e:
        print(f"error: {e}", file=sys.stderr)
        return exit_codes.of(e)
    return exit_codes.DONE


def _run(own: flags.FlagValues) -> None:
    names = [
        *("workers", "ps", "bandwidth", "worker_bandwidth", "latency", "worker_latency"),
        *("cores", "slow", "leaving", "returning"),
    ]
    given: dict[str, Any] = {name: own[name].value for name in names}
    fleet = Fleet(**given, snapshots=own.snapshots or math.inf)

    def say(line: str) -> None:
        print(f"simulating {line}", file=sys.stderr, flush=True)

    made = plan(
        own.profile,
        fleet,
        consistency=own.consistency,
        copies=own.copies,
        codecs=own.codecs,
        hooks=own.hooks,
        progress=say,
    )
    print(report.text(made, own.top))
    if own.json:
        report.write_json(made, own.json)
    if own.plot:
        report.plot(made, own.plot)
