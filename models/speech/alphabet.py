"""Texts as symbols of CTC, and back."""

from collections.abc import Iterable

import numpy as np


class Alphabet:
    """Numbers the characters of texts from 1 on; 0 is CTC's blank.

    Attributes:
      characters: a text in which each character stands once, in the order of their numbers.
    """

    def __init__(self, characters: str):
        """Takes the characters."""
        self.characters = characters
        self._numbers = {c: i for i, c in enumerate(characters, 1)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Alphabet":
        """The alphabet of all characters in texts."""
        return cls("".join(sorted(set("".join(texts)))))

    def encode(self, text: str) -> np.ndarray:
        """The symbols of a text, int32 [n]; a character that is not in the alphabet is left out."""
        return np.array([self._numbers[c] for c in text if c in self._numbers], np.int32)

    def decode(self, symbols: Iterable[int]) -> str:
        """The likeliest text of one symbol for each frame: repeats are one, and blanks none."""
        last, text = 0, ""
        for symbol in symbols:
            if symbol not in (0, last):
                text += self.characters[symbol - 1]
            last = symbol
        return text


def frames_needed(symbols: np.ndarray) -> int:
    """The least number of frames in which CTC can say these symbols, int32 [n].

    There is a frame for each, and a blank between two that are equal.
    """
    return len(symbols) + int((symbols[1:] == symbols[:-1]).sum())
