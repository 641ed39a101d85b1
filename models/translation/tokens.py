"""Texts of both languages as tokens, and back."""

from collections.abc import Iterable, Sequence

import numpy as np

from models.gpt.tokenizers import WordPiece

PADDING, BEGIN, END = range(3)
_SPECIAL = 3  # Ids before those of word pieces.
_SAMPLE = 2_000_000  # Characters to learn word pieces from, since the learner is slow.
_NEW_LINE = "⏎"  # The word piece of a line's end. In a text, this sign counts as a space.


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
        return cls(WordPiece.learn([_lines(texts[::every])], size))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, int32 [n], without marks of begin and end."""
        ids = self.pieces.encode(_lines(texts))
        ends = np.flatnonzero(ids == self._between)
        return [part[part != self._between] + _SPECIAL for part in np.split(ids, ends)[:-1]]

    def cut(self, text: str, most: int) -> list[str]:
        """Cuts a text into parts of at most `most` tokens each, of about the same length.

        It is cut at spaces, and within a word only where the word alone has more tokens.

        Args:
          text: with single spaces.
          most: at least 1.
        """
        if len(text) < 2 or len(self.encode([text])[0]) <= most:
            return [text]
        middle = len(text) // 2
        spaces = (i for i, sign in enumerate(text) if sign == " ")
        at = min(spaces, key=lambda i: abs(i - middle), default=middle)
        return [*self.cut(text[:at], most), *self.cut(text[at:].lstrip(), most)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; marks and padding are left out."""
        kept = (t - _SPECIAL for t in tokens if t >= _SPECIAL)
        return " ".join(self.pieces.decode(kept).split())


def _lines(texts: Iterable[str]) -> bytes:
    """Texts as lines, in UTF-8."""
    kept = (" ".join(text.replace(_NEW_LINE, " ").split()) for text in texts)
    return "".join(f"{text}\n" for text in kept).encode()


def with_marks(tokens: np.ndarray) -> np.ndarray:
    """A target as the decoder meets it: between BEGIN and END."""
    return np.concatenate([[BEGIN], tokens, [END]]).astype(np.int32)
