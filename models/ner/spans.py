"""Entities as spans of words, and how many of them are found."""

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """An entity in a sentence.

    Attributes:
      type: the type of the entity.
      first: index of its first word.
      end: index of the word after its last one.
    """

    type: str
    first: int
    end: int


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities that tags stand for, as conlleval counts them.

    An entity begins at a "B-", and at an "I-" that follows no entity of its type. So tags of either
    convention (IOB1, IOB2) are understood, and so are sequences that a model should not give.

    Args:
      tags: of the words of a sentence, "O", "B-TYPE" or "I-TYPE".
    """
    found = []
    first, last = 0, ""  # Of the entity that has begun; "" if none has.
    for i, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        if last and (mark != "I" or kind != last):
            found.append(Span(last, first, i))
            last = ""
        if kind and not last:
            first, last = i, kind
    return found


class Score(NamedTuple):
    """How many entities are found.

    Attributes:
      found: number of spans that are right: first word, last word and type.
      guessed: number of spans that were guessed.
      true: number of spans that there are.
    """

    found: int
    guessed: int
    true: int

    @property
    def precision(self) -> float:
        """The share of the guessed spans that are right; 0 if there are none."""
        return self.found / self.guessed if self.guessed else 0.0

    @property
    def recall(self) -> float:
        """The share of the true spans that are found; 0 if there are none."""
        return self.found / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        total = self.guessed + self.true
        return 2 * self.found / total if total else 0.0


def score(
    true: Sequence[Sequence[str]], guessed: Sequence[Sequence[str]], kind: str | None = None
) -> Score:
    """Compares tags with guessed tags.

    Args:
      true: for each sentence the tags of its words.
      guessed: the same, as a model gives them.
      kind: the type of entities that is counted; None counts all.
    """
    counts = [0, 0, 0]
    for a, b in zip(true, guessed, strict=True):
        ours, theirs = ({s for s in spans(t) if kind in (None, s.type)} for t in (a, b))
        for i, n in enumerate((len(ours & theirs), len(theirs), len(ours))):
            counts[i] += n
    return Score(*counts)
