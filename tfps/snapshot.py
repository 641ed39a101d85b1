"""`python -m tfps.snapshot list|show|export DIRECTORY`: what is in snapshots.

python -m tfps.snapshot list runs/snapshots
python -m tfps.snapshot show runs/snapshots --snapshot=snapshot-000001-000017
python -m tfps.snapshot export runs/snapshots --output=model.keras
"""

import argparse
import sys
from collections.abc import Sequence

from tfps import errors, exit_codes
from tfps.training import snapshot_files
from tfps.training.snapshots import Snapshots

__all__ = ["Snapshots", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code.

    Args:
      argv: the arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tfps.snapshot", description="Lists, shows and exports snapshots."
    )
    parser.add_argument("command", choices=["list", "show", "export"])
    parser.add_argument("directory", help="what Snapshots(directory) was given")
    parser.add_argument("--snapshot", help="its name, as in the list; default: the newest")
    parser.add_argument(
        "--output",
        default="model.keras",
        help="of export: x.keras, x.weights.h5, or the prefix of a TensorFlow checkpoint",
    )
    given = parser.parse_args(argv)
    try:
        for line in _lines(given):
            print(line)
    except errors.Error as e:
        print(f"error: {e}", file=sys.stderr)
        return exit_codes.of(e)
    return exit_codes.DONE


def _lines(given: argparse.Namespace) -> Sequence[str]:
    if given.command == "list":
        return list(snapshot_files.table(given.directory))
    manifest = snapshot_files.chosen(given.directory, given.snapshot)
    if given.command == "show":
        return list(snapshot_files.shown(manifest))
    return [snapshot_files.export(given.directory, manifest, given.output)]


if __name__ == "__main__":
    sys.exit(main())
