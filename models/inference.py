"""Flags of the binaries that answer for examples in a file."""

import sys

import numpy as np
from absl import flags

import tfps

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "predict", None, "Do not train; answer for these examples, by the model of --save."
)
flags.DEFINE_string("out", "-", "File of the answers; - prints them.")


def write(names: list[str], columns: list, separator: str) -> None:
    """Writes answers to --out, a line for each example, after a line of names.

    Args:
      names: of the columns.
      columns: for each column its values, [n] each.
      separator: between the values of a line.

    Raises:
      ConfigError: the file cannot be written.
    """
    rows = zip(*columns, strict=True)
    lines = [separator.join(names), *(separator.join(map(_text, row)) for row in rows)]
    write_text("\n".join(lines) + "\n")


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
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
