"""`python -m tfps.ledger check FOLDER`: whether each batch was applied exactly once on every ps.

The folder is that of `Trainer(ledger=...)`. The last line of a run in which servers were killed:

python -m tfps.ledger check runs/ledger
each of 10,007 records once on each of 2 ps; 3 units repeated; 1 late push refused
"""

import argparse
import sys
from collections.abc import Sequence

from tfps import errors, exit_codes
from tfps.training.ledger_check import Verdict, check

__all__ = ["Verdict", "check", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code.

    The code is 0 if every batch was applied once or dropped as its policy may, 1 if not or if a
    file is damaged, 2 if there is no whole ledger, and 75 if the job did not come to its end.

    Args:
      argv: the arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tfps.ledger", description="Checks the ledger of a training."
    )
    parser.add_argument("command", choices=["check"])
    parser.add_argument("folder", help="what Trainer(ledger=...) was given")
    given = parser.parse_args(argv)
    try:
        verdict = check(given.folder)
    except errors.Error as e:
        print(f"error: {e}", file=sys.stderr)
        return exit_codes.of(e)
    for line in verdict.lines:
        print(line)
    return verdict.code


if __name__ == "__main__":
    sys.exit(main())
