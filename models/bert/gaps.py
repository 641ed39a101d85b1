"""Finds masked words in lines of text."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

import tfps
from models import transformer, word_pieces


class Guess(NamedTuple):
    """What may stand in a gap.

    Attributes:
      line: number of the line, from 1 on.
      gap: number of the gap in the line, from 1 on.
      piece: a word piece.
      probability: that the model gives it.
    """

    line: int
    gap: int
    piece: str
    probability: float


_GUESSES = 3  # for a gap


def read(path: str) -> list[str]:
    """Reads the lines of a text file.

    Args:
      path: of --predict.

    Raises:
      DataError: the file cannot be read, or no line has a `[MASK]`.
    """
    try:
        with open(path, encoding="utf-8") as f:
            lines = f.read().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise tfps.DataError(f"--predict={path} is no text file that can be read: {e}") from e
    if not any(word_pieces.MASK in line for line in lines):
        raise tfps.DataError(
            f"--predict={path} has no {word_pieces.MASK}; write it where a word is to be found"
        )
    return lines


def fill(model: keras.Model, pieces: list[str], lines: Sequence[str]) -> list[Guess]:
    """The likeliest pieces for each `[MASK]`, the likeliest first.

    Args:
      model: of `model.build`.
      pieces: its vocabulary.
      lines: texts; each is a window of its own.

    Raises:
      DataError: a line with a `[MASK]` has more tokens than the model takes.
    """
    longest = transformer.size_of(model).longest
    mask = pieces.index(word_pieces.MASK)
    found = []
    for number, line in enumerate(lines, 1):
        tokens = _tokens(line, pieces)
        positions = np.flatnonzero(tokens == mask)
        if not len(positions):
            continue
        if len(tokens) > longest:
            raise tfps.DataError(
                f"--predict: line {number} has {len(tokens)} tokens, more than the {longest} that "
                "the model takes; make the line shorter"
            )
        logits = model({"tokens": tokens[None], "positions": positions[None]}, training=False)
        chances = keras.ops.convert_to_numpy(keras.ops.softmax(logits))[0]
        for gap, chance in enumerate(chances, 1):
            best = np.argsort(-chance)[:_GUESSES]
            found += [Guess(number, gap, pieces[i], float(chance[i])) for i in best]
    return found


def _tokens(line: str, pieces: list[str]) -> np.ndarray:
    """int32 [n]: `[CLS]`, the line's tokens with the gaps, `[SEP]`."""
    cls, sep, mask = (pieces.index(p) for p in (word_pieces.CLS, word_pieces.SEP, word_pieces.MASK))
    # The tokenizer takes `[MASK]` for a word between brackets.
    parts = word_pieces.tokenizer(pieces).tokenize(line.split(word_pieces.MASK)).to_list()
    ids = [cls, *parts[0], *(i for part in parts[1:] for i in (mask, *part)), sep]
    return np.array(ids, np.int32)
