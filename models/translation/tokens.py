"""Texts of both languages as tokens, and back."""

from collections.abc import Iterable, Sequence

import numpy as np

from models.gpt.tokenizers import WordPiece

PADDING, BEGIN, END = range(3)
_SPECIAL = 3  # Ids before those of word pieces.
_SAMPLE = 2_000_000  # Characters to learn word pieces from, since the learner is slow.
_NEW_LINE = "⏎"


class Tokens:
    """Word pieces that both languages share, and marks where a text begins and ends.

    Attributes:
      vocabulary: number of token ids.
      pieces: the tokenizer of the word pieces.
    """

    def __init__(self, pieces: WordPiece):
        """Takes word pieces that include a line's end."""
        self.pieces = pieces
        self.vocabulary = _SPECIAL + pieces.vocabulary
        self._between = pieces.pieces.index(_NEW_LINE)

    @classmethod
    def learn(cls, texts: Sequence[str], size: int) -> "Tokens":
        """Learns word pieces.

        Args:
          texts: of both languages, without ends of lines.
          size: most pieces to learn.
        """
        every = max(1, sum(map(len, texts)) // _SAMPLE)
        return cls(WordPiece.learn(["\n".join([*texts[::every], ""]).encode()], size))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, int32 [n], without marks of begin and end."""
        ids = self.pieces.encode("".join(f"{text}\n" for text in texts).encode())
        ends = np.flatnonzero(ids == self._between)
        return [part[part != self._between] + _SPECIAL for part in np.split(ids, ends)[:-1]]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; marks and padding are left out."""
        kept = (t - _SPECIAL for t in tokens if t >= _SPECIAL)
        return " ".join(self.pieces.decode(kept).split())


def with_marks(tokens: np.ndarray) -> np.ndarray:
    """A target as the decoder meets it: between BEGIN and END."""
    return np.concatenate([[BEGIN], tokens, [END]]).astype(np.int32)
