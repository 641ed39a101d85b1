"""Text to token ids and back: bytes, or word pieces learned from the data."""

import collections
import os
import re
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

from tfps import errors


class Tokenizer(Protocol):
    """What turns text into token ids and back.

    Attributes:
      vocabulary: number of token ids.
    """

    vocabulary: int

    def encode(self, text: bytes) -> np.ndarray:
        """Encodes a text as token ids, int32 [n]."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Decodes token ids."""


class Bytes:
    """Every byte is a token."""

    vocabulary = 256

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(int(t) for t in tokens).decode("utf-8", errors="replace")


class WordPiece:
    """Word pieces (Schuster and Nakajima, 2012) that keep white space.

    White space is a part of the tokens: a space becomes `▁`, a newline `⏎`, a tab `⇥`, and a word
    includes the space before it. So the tokens of a text without unknown characters decode to
    exactly this text, unlike the tokens of BERT.
    """

    _UNKNOWN = "[UNK]"
    _SUFFIX = "##"
    _MARKS = str.maketrans({" ": "▁", "\n": "⏎", "\t": "⇥"})
    _UNMARKS = str.maketrans({"▁": " ", "⏎": "\n", "⇥": "\t"})
    # An indent, a word or a run of signs (with the space before it), or any other white space.
    _WORD = re.compile(r"\n +|\n| ?[A-Za-z_]+| ?\d| ?[^\w\s]+| ?\w+|\s+")
    _LONGEST = 40  # Most characters of a word; a longer word is cut.

    def __init__(self, pieces: list[str]):
        """Makes a tokenizer with these word pieces, whose ids are their indices."""
        self.pieces = pieces
        self.vocabulary = len(pieces)

    @classmethod
    def learn(cls, texts: Iterable[bytes], size: int, sample_bytes: int = 4_000_000) -> "WordPiece":
        """Learns a vocabulary from the texts.

        Args:
          texts: contents of files, in UTF-8.
          size: most pieces to learn.
          sample_bytes: how much text to learn from, since the learner is slow.
        """
        counts: collections.Counter[str] = collections.Counter()
        seen = 0
        for text in texts:
            counts.update(cls._words(text))
            seen += len(text)
            if seen > sample_bytes:
                break
        pieces = learner.learn(
            counts, size, [cls._UNKNOWN], lower_thresh=2, num_iterations=3, max_token_length=20
        )
        return cls(pieces)

    @classmethod
    def load(cls, path: str) -> "WordPiece":
        """Reads a vocabulary that `save` wrote."""
        with open(path, encoding="utf-8", newline="") as f:
            return cls(f.read().split("\n"))

    def save(self, path: str) -> None:
        """Writes the pieces, one on each line."""
        with open(path, "w", encoding="utf-8", newline="") as f:
            f.write("\n".join(self.pieces))

    def encode(self, text: bytes) -> np.ndarray:
        # The table is made anew for each call, since connecting to a cluster would destroy it.
        keys, ids = tf.constant(self.pieces), tf.range(len(self.pieces), dtype=tf.int64)
        table = tf.lookup.StaticVocabularyTable(
            tf.lookup.KeyValueTensorInitializer(keys, ids), num_oov_buckets=1
        )
        tokenizer = tf_text.WordpieceTokenizer(
            table,
            suffix_indicator=self._SUFFIX,
            max_bytes_per_word=4 * self._LONGEST,
            unknown_token=self._UNKNOWN,
        )
        tokens = tokenizer.tokenize(tf.constant(self._words(text), tf.string))
        return tokens.flat_values.numpy().astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        pieces = (self.pieces[t] for t in tokens)
        text = "".join("�" if p == self._UNKNOWN else p.removeprefix(self._SUFFIX) for p in pieces)
        return text.translate(self._UNMARKS)

    @classmethod
    def _words(cls, text: bytes) -> list[str]:
        found = cls._WORD.findall(text.decode("utf-8", errors="replace"))
        marked = (word.translate(cls._MARKS) for word in found)
        return [w[i : i + cls._LONGEST] for w in marked for i in range(0, len(w), cls._LONGEST)]


def vocabulary_path(model_path: str) -> str:
    """The path of the vocabulary of a saved model, which lies beside the model."""
    return os.path.splitext(model_path)[0] + ".vocab.txt"


def of_saved_model(model_path: str, vocabulary: int) -> Tokenizer:
    """Loads the tokenizer that a saved model was trained with.

    Raises:
      DataError: the vocabulary file is missing and the model is not a model of bytes, or the
        vocabulary does not fit the model.
    """
    path = vocabulary_path(model_path)
    if os.path.exists(path):
        tokenizer = WordPiece.load(path)
        if tokenizer.vocabulary != vocabulary:
            raise errors.DataError(
                f"{path} has {tokenizer.vocabulary} pieces, but {model_path} has {vocabulary} "
                "tokens; they are not of one training"
            )
        return tokenizer
    if vocabulary != Bytes.vocabulary:
        raise errors.DataError(
            f"{model_path} has {vocabulary} tokens, but its vocabulary {path} is missing; copy "
            "it beside the model"
        )
    return Bytes()
