"""Sentences as arrays of word pieces, and back."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from models import transformer, word_pieces
from models.ner.sentences import Sentence

NO_TAG = -1  # The target of tokens that do not count: all but the first of each word.


@dataclasses.dataclass(frozen=True)
class Examples:
    """Sentences as sequences of tokens; a long sentence is several of them.

    Attributes:
      tokens: int32 [n, context]: `[CLS]`, word pieces, `[SEP]`, padding.
      tags: int32 [n, context]; at the first piece of each word its tag, elsewhere `NO_TAG`.
      lengths: number of words of each sentence.
    """

    tokens: np.ndarray
    tags: np.ndarray
    lengths: list[int]

    def by_word(self, values: np.ndarray) -> list[np.ndarray]:
        """What a model says of each word of each sentence, of values [n, context] by token."""
        flat = values[self.tags != NO_TAG]
        return np.split(flat, np.cumsum(self.lengths)[:-1])


def encode(
    sentences: Sequence[Sentence], pieces: list[str], names: Sequence[str], context: int
) -> Examples:
    """Makes arrays of sentences.

    Args:
      sentences: at least one. A sentence that is too long is cut between words.
      pieces: the vocabulary.
      names: of the tags; a tag that is none of them counts as the first.
      context: length of a sequence, in tokens.
    """
    by_word = _pieces_of({word for s in sentences for word in s.words}, pieces, context - 2)
    index = {name: i for i, name in enumerate(names)}
    cls, sep = pieces.index(word_pieces.CLS), pieces.index(word_pieces.SEP)
    rows: list[tuple[list[int], list[int]]] = []
    for sentence in sentences:
        rows.append(([cls], [NO_TAG]))
        for word, tag in zip(*sentence, strict=True):
            ids = by_word[word]
            if len(rows[-1][0]) + len(ids) > context - 1:
                rows.append(([cls], [NO_TAG]))
            rows[-1][0].extend(ids)
            rows[-1][1].extend([index.get(tag, 0), *[NO_TAG] * (len(ids) - 1)])
    tokens = np.full([len(rows), context], transformer.PADDING, np.int32)
    tags = np.full([len(rows), context], NO_TAG, np.int32)
    for i, (ids, its) in enumerate(rows):
        tokens[i, : len(ids) + 1] = [*ids, sep]
        tags[i, : len(its)] = its
    return Examples(tokens, tags, [len(s.words) for s in sentences])


def _pieces_of(words: set[str], pieces: list[str], most: int) -> dict[str, list[int]]:
    """The ids of each word's pieces: at least one, and at most `most`, the first of them."""
    listed = sorted(words)
    unknown = [pieces.index(word_pieces.UNKNOWN)]
    found = word_pieces.tokenizer(pieces).tokenize(listed).to_list()
    return {word: ids[:most] or unknown for word, ids in zip(listed, found, strict=True)}
