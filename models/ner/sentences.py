"""Sentences of words with tags, and files of them in the format of CoNLL."""

import re
from typing import NamedTuple

import tfps

OUTSIDE = "O"

_WORD = re.compile(r"\w+|[^\w\s]")


class Sentence(NamedTuple):
    """A sentence.

    Attributes:
      words: its words and signs.
      tags: for each word "O", or "B-" or "I-" and the type of its entity: "B-" at the first word of
        an entity, "I-" at others.
    """

    words: list[str]
    tags: list[str]


def words_of(text: str) -> list[tuple[int, str]]:
    """The words and signs of a text, each with the position of its first character."""
    return [(found.start(), found[0]) for found in _WORD.finditer(text)]


def read(path: str, flag: str, tagged: bool = True) -> list[Sentence]:
    """Reads a file in the format of CoNLL's shared tasks.

    Each line has a word first and its tag last, with spaces or tabs between columns; an empty
    line ends a sentence. Lines that begin with `-DOCSTART-` are left out.

    Args:
      path: of a file in UTF-8.
      flag: the flag that named the file, for errors.
      tagged: whether the tags are needed; without them, all are "O".

    Raises:
      DataError: the file cannot be read, has no word, or a tag is none.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = f.read().split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise tfps.DataError(f"--{flag}={path} is no text file that can be read: {e}") from e
    found = [Sentence([], [])]
    for number, line in enumerate(lines, 1):
        columns = re.split("[ \t]+", line.strip(" \t"))
        if not line.strip():
            found.append(Sentence([], []))
        elif columns[0] != "-DOCSTART-":
            found[-1].words.append(columns[0])
            found[-1].tags.append(
                _tag(columns, f"--{flag}={path}: line {number}") if tagged else "O"
            )
    found = [sentence for sentence in found if sentence.words]
    if not found:
        raise tfps.DataError(
            f"--{flag}={path} has no words; give one on each line, and an empty line after each "
            "sentence"
        )
    return found


def _tag(columns: list[str], where: str) -> str:
    tag = columns[-1]
    if len(columns) < 2 or not (tag == OUTSIDE or re.fullmatch("[BI]-.+", tag)):
        raise tfps.DataError(
            f"{where} has {columns[-1]!r} in the place of a tag; expected a word and O, B-TYPE or "
            "I-TYPE"
        )
    return tag


def read_lines(path: str, flag: str) -> list[Sentence]:
    """Reads a text file, each line of which is a sentence; all tags are "O".

    Args:
      path: of a file in UTF-8.
      flag: the flag that named the file, for errors.

    Raises:
      DataError: the file cannot be read, or has no word.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = [[word for _, word in words_of(line)] for line in f]
    except (OSError, UnicodeDecodeError) as e:
        raise tfps.DataError(f"--{flag}={path} is no text file that can be read: {e}") from e
    found = [Sentence(words, [OUTSIDE] * len(words)) for words in lines if words]
    if not found:
        raise tfps.DataError(f"--{flag}={path} has no words; give a text on each line")
    return found


def conll(sentences: list[Sentence]) -> str:
    """The content of a file that `read` reads."""
    blocks = ("".join(f"{w}\t{t}\n" for w, t in zip(*s, strict=True)) for s in sentences)
    return "\n".join(blocks)
