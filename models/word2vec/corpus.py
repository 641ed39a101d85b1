"""Text as numbers: words that occur often enough, and where the lines are."""

import collections
import dataclasses
import re
from collections.abc import Iterable

import numpy as np

import tfps
from models import packages, tables, texts
from models.word2vec import wikipedia

_WORD = re.compile(r"[^\W\d_]+")
_HELD_OUT = 0.02  # Of the lines.
_DATA = "gensim/test/test_data/"
_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_QUESTIONS = {
    "wordsim353": "wordsim353.tsv",
    "simlex999": "simlex999.txt",
    "analogies": "questions-words.txt",
}

Line = list[str]  # Its words, in order.


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text with its vocabulary.

    Attributes:
      words: the vocabulary, the most frequent first.
      counts: int64 [vocabulary], how often each word occurs.
      ids: int32 [n], the words of the text that are in the vocabulary, by their number.
      lines: int32 [n], in which line each of these words is; numbers never fall.
    """

    words: list[str]
    counts: np.ndarray
    ids: np.ndarray
    lines: np.ndarray

    @classmethod
    def of(cls, lines: Iterable[Line], min_count: int) -> "Corpus":
        """Counts words, and numbers those that occur often enough.

        Args:
          lines: the text; windows do not reach across lines.
          min_count: smallest number of occurrences of a word of the vocabulary.

        Raises:
          DataError: fewer than two words occur so often.
        """
        lines = list(lines)
        counts = collections.Counter(word for line in lines for word in line)
        known = sorted((-n, word) for word, n in counts.items() if n >= min_count)
        words = [word for _, word in known]
        if len(words) < 2:
            raise tfps.DataError(
                f"--data has {len(words)} words that occur {min_count} times or more; give more "
                "text, or a smaller --min_count"
            )
        return cls(words, np.array([-n for n, _ in known], np.int64), *_numbered(lines, words))

    def encoded(self, lines: Iterable[Line]) -> "Corpus":
        """Another text with the vocabulary and the counts of this one."""
        return Corpus(self.words, self.counts, *_numbered(lines, self.words))


def _numbered(lines: Iterable[Line], words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    number = {word: i for i, word in enumerate(words)}
    found = [[number[word] for word in line if word in number] for line in lines]
    lengths = np.array([len(line) for line in found], np.int64)
    ids = np.fromiter((i for line in found for i in line), np.int32, int(lengths.sum()))
    return ids, np.repeat(np.arange(len(found), dtype=np.int32), lengths)


def lines_of(text: str) -> list[Line]:
    """The lines of a text that have at least two words: runs of letters, in lower case."""
    found = (_WORD.findall(line.lower()) for line in text.split("\n"))
    return [line for line in found if len(line) > 1]


def read(pattern: str | None) -> tuple[list[Line], list[Line]]:
    """Reads a text: (lines to train on, lines held out).

    Args:
      pattern: files of --data, or None for 106 articles of Wikipedia.

    Raises:
      DataError: a file or package is missing or broken, or there are fewer than two lines.
    """
    if pattern is None:
        (dump,) = packages.read("gensim-", [_DATA + _DUMP], "word2vec")
        lines = lines_of("\n".join(wikipedia.paragraphs(dump)))
    else:
        files = texts.read(texts.find(pattern)).values()
        lines = [line for file in files for line in lines_of(file.decode("utf-8", "replace"))]
    training, held = tables.held_out(len(lines), _HELD_OUT)
    return [lines[i] for i in np.sort(training)], [lines[i] for i in np.sort(held)]


def read_questions() -> dict[str, str]:
    """What people say of words, of the package gensim: name -> content of a file.

    Raises:
      DataError: the package is missing or broken.
    """
    contents = packages.read("gensim-", [_DATA + name for name in _QUESTIONS.values()], "word2vec")
    return {name: content.decode() for name, content in zip(_QUESTIONS, contents, strict=True)}
