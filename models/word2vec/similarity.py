"""How well word vectors agree with people's judgement, and which words are next to a word."""

import math

import numpy as np

import tfps

Pair = tuple[str, str, float]  # Two words, and how similar people find them.


class Vectors:
    """Word vectors, to be compared by their angles.

    Attributes:
      words: the vocabulary.
      unit: float32 [vocabulary, width], of length 1 each.
    """

    def __init__(self, words: list[str], vectors: np.ndarray):
        """Takes words and their vectors, [vocabulary, width]."""
        self.words = words
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
        self._number = {word: i for i, word in enumerate(words)}

    def __contains__(self, word: str) -> bool:
        return word in self._number

    def rows(self, words: list[str]) -> np.ndarray:
        """The numbers of words, all of which must be in the vocabulary."""
        return np.array([self._number[word] for word in words], np.int64)

    def next_to(self, word: str, count: int) -> list[tuple[str, float]]:
        """(word, cosine) of the words with the smallest angles to this one's, nearest first."""
        (row,) = self.rows([word])
        cosines = self.unit @ self.unit[row]
        cosines[row] = -np.inf
        found = np.argsort(-cosines, kind="stable")[: min(count, len(self.words) - 1)]
        return [(self.words[i], float(cosines[i])) for i in found]


def pairs(content: str, where: str) -> list[Pair]:
    """Pairs of words that people have scored, in lower case.

    Args:
      content: lines of two words and a number, separated by tabs. What follows the number counts
        for nothing. Empty lines are left out, and lines that begin with #, which are remarks.
      where: which file this is, for errors.

    Raises:
      DataError: a line is none of these.
    """
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip() or line[0] == "#":
            continue
        try:
            a, b, score = line.lower().split("\t")[:3]
            found.append((a.strip(), b.strip(), float(score)))
            if not math.isfinite(found[-1][2]):
                raise ValueError(score)
        except ValueError as e:
            raise tfps.DataError(
                f"{where}: line {number} is {line.strip()!r}; expected two words and a number, "
                "separated by tabs, or a remark that begins with #"
            ) from e
    return found


def correlation(vectors: Vectors, pairs: list[Pair]) -> tuple[float, int]:
    """Spearman's rank correlation of cosines with people's judgement of word pairs.

    Args:
      vectors: of words in lower case. Pairs with other words are left out.
      pairs: of words, with people's scores.

    Returns:
      The correlation, and the number of pairs that were compared; NaN with fewer than 2.
    """
    known = [pair for pair in pairs if pair[0] in vectors and pair[1] in vectors]
    if len(known) < 2:
        return float("nan"), len(known)
    firsts, seconds, scores = zip(*known, strict=True)
    a, b = (vectors.unit[vectors.rows(list(words))] for words in (firsts, seconds))
    ranks = [_ranks((a * b).sum(1)), _ranks(np.array(scores))]
    return float(np.corrcoef(ranks)[0, 1]), len(known)


def analogies(vectors: Vectors, questions: str, batch: int = 512) -> tuple[float, int]:
    """How often b - a + c is nearest to d: "a is to b as c is to d" (Mikolov et al., 2013).

    Args:
      vectors: of words in lower case. Questions with other words are left out.
      questions: lines of four words. Lines that begin with : are headings.
      batch: number of questions that are answered at a time.

    Returns:
      The share of right answers, and the number of questions; NaN without any.
    """
    lines = [line.lower().split() for line in questions.splitlines() if line[:1] != ":"]
    known = [line for line in lines if len(line) == 4 and all(word in vectors for word in line)]
    right = 0
    for first in range(0, len(known), batch):
        a, b, c, d = (
            vectors.rows(list(w)) for w in zip(*known[first : first + batch], strict=True)
        )
        unit = vectors.unit
        cosines = (unit[b] - unit[a] + unit[c]) @ unit.T
        np.put_along_axis(cosines, np.stack([a, b, c], 1), -np.inf, 1)
        right += int((cosines.argmax(1) == d).sum())
    return right / len(known) if known else float("nan"), len(known)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [n]; equal values have the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
