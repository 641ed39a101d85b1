"""What a parameter server writes down of each letter, where a ledger is kept.

A ps appends a line to a file of its own, in the folder of the ledger on its own host, before it
answers. A ps that is killed may leave half a line behind. Each line therefore begins with a line
break and ends with a mark, so the next line is whole again.
"""

import os
from typing import Any, NamedTuple

import tensorflow as tf

_END = "."


class Line(NamedTuple):
    """The numbers of a line: int64 scalars in the loop, integers for a reader.

    Attributes:
      chief, run: which run of which chief the loop belongs to; see `training.ledger`.
      kind: of the letter; see `mailbox`.
      worker, life, unit, masked, live, finite: of the letter's header. A fence says which life
        begins.
      counts: 1 if the loop took the life for the present one, else 0: it refused the letter.
      updated: 1 if the optimizer has updated with this letter, else 0.
      records: how many examples the unit has; -1 in a letter of the chief.
    """

    chief: Any
    run: Any
    kind: Any
    worker: Any
    life: Any
    unit: Any
    masked: Any
    live: Any
    finite: Any
    counts: Any
    updated: Any
    records: Any

    @classmethod
    def of(cls, text: str) -> "Line | None":
        """Reads a line; None for half a line."""
        *numbers, end = text.split(" ")
        if end != _END or len(numbers) != len(cls._fields):
            return None
        try:
            return cls(*map(int, numbers))
        except ValueError:
            return None


def path_of(folder: str, p: int) -> str:
    """The file of a ps."""
    return os.path.join(folder, f"ps-{p}.log")


def begin(folder: str, p: int) -> None:
    """Makes the folder on the host of a ps, whose device is in scope.

    Raises:
      tf.errors.OpError: the ps cannot write there.
    """
    tf.io.write_file(f"{path_of(folder, p)}.begun", "The file beside this one is written by a ps.")


def append(folder: str, p: int, line: Line) -> tf.Operation:
    """Appends a line to the file of a ps, on whose device this is traced."""
    row = tf.stack([tf.cast(n, tf.int64) for n in line])
    numbers = tf.strings.reduce_join(tf.as_string(row), separator=" ")
    text = tf.strings.join(["\n", numbers, f" {_END}"])
    return tf.raw_ops.PrintV2(input=text, output_stream=f"file://{path_of(folder, p)}", end="")
