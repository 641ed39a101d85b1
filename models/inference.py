"""Flags of the binaries that answer for examples in a file."""

import csv
import io
import sys

import numpy as np
from absl import flags

import tfps

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "predict", None, "Do not train; answer for these examples, by the model of --save."
)
flags.DEFINE_string("out", "-", "File of the answers; - prints them.")


def write(names: list[str], columns: list) -> None:
    """Writes answers to --out, a line for each example, after a line of names.

    Args:
      names: of the columns.
      columns: for each column its values, [n] each, without tabs, which separate them.

    Raises:
      ConfigError: the file cannot be written.
    """
    rows = zip(*columns, strict=True)
    lines = ["\t".join(names), *("\t".join(map(_text, row)) for row in rows)]
    write_text("\n".join(lines) + "\n")


def write_csv(names: list[str], columns: list) -> None:
    """Writes answers to --out as a CSV file, whatever is in the values.

    Args:
      names: of the columns.
      columns: for each column its values, [n] each.

    Raises:
      ConfigError: the file cannot be written.
    """
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(map(_text, row) for row in zip(*columns, strict=True))
    write_text(content.getvalue())


def write_text(content: str) -> None:
    """Writes answers to --out.

    Args:
      content: of the file.

    Raises:
      ConfigError: the file cannot be written.
    """
    if FLAGS.out == "-":
        sys.stdout.write(content)
        return
    try:
        with open(FLAGS.out, "w", encoding="utf-8") as f:
            f.write(content)
    except OSError as e:
        raise tfps.ConfigError(f"--out={FLAGS.out} cannot be written: {e.strerror}") from e


def _text(value: object) -> str:
    """A value as it is written; a number has the digits that tell it from all other float32."""
    if isinstance(value, float | np.floating):
        value = float(str(np.float32(value)))
    return str(value)
