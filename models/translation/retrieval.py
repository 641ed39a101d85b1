"""The baseline: the translation of the text that is most like the source."""

import collections
from collections.abc import Sequence

import numpy as np


class Neighbours:
    """Finds the text that shares most tokens with another: cosine of weights by rarity (TF-IDF)."""

    def __init__(self, texts: Sequence[np.ndarray], vocabulary: int):
        """Counts the tokens of texts.

        Args:
          texts: token ids of each text, int [n].
          vocabulary: number of token ids.
        """
        bags = [np.unique(text, return_counts=True) for text in texts]
        found_in = np.bincount(np.concatenate([ids for ids, _ in bags]), minlength=vocabulary)
        self._rarity = np.log((1 + len(texts)) / (1 + found_in)) + 1
        lists: dict[int, list[tuple[int, float]]] = collections.defaultdict(list)
        for i, (ids, counts) in enumerate(bags):
            weights = counts * self._rarity[ids]
            norm = np.linalg.norm(weights)
            for token, weight in zip(ids, weights, strict=True):
                lists[int(token)].append((i, weight / norm))
        self._where = {token: np.array(rows) for token, rows in lists.items()}
        self._count = len(texts)

    def nearest(self, text: np.ndarray) -> int:
        """The index of the text that is most like another one, int [n]."""
        scores = np.zeros(self._count)
        for token, times in zip(*np.unique(text, return_counts=True), strict=True):
            if (rows := self._where.get(int(token))) is not None:
                scores[rows[:, 0].astype(int)] += times * self._rarity[token] * rows[:, 1]
        return int(scores.argmax())
