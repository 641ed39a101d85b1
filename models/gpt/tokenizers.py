"""Text to token ids and back: bytes, or word pieces learned from the data."""

import collections
import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

from tfps import errors

SAMPLE = 4_000_000  # bytes of text to learn word pieces from; the learner is slow


class Tokenizer(Protocol):
    """What turns text into token ids and back.

    Attributes:
      vocabulary: number of token ids.
    """

    vocabulary: int

    def encode(self, text: bytes) -> np.ndarray:
        """Encodes a text as token ids, int32 [n]."""

    def tokens(self, text: tf.Tensor) -> tf.Tensor:
        """Encodes a text, string [], as token ids, int32 [n].

        This goes on in the graph of a dataset, which may be another task's of a cluster.
        """

    def decode(self, tokens: Iterable[int]) -> str:
        """Decodes token ids."""


class Bytes:
    """Every byte is a token."""

    vocabulary = 256

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def tokens(self, text: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)

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
    _MARKS = ((" ", "▁"), ("\n", "⏎"), ("\t", "⇥"))
    # An indent, a word or a run of signs (with the space before it), or any other white space. In
    # the words of RE2, to which \s and \w are those of ASCII.
    _WORD = r"\n +|\n| ?[A-Za-z_]+| ?\p{Nd}| ?[^\pL\pN_\s\pZ]+| ?[\pL\pN_]+|[\s\pZ]+"
    _END = "\0"  # Put after each word; a text has no such byte.
    _LONGEST = 40  # Most characters of a word; a longer word is cut.

    def __init__(self, pieces: list[str]):
        """Makes a tokenizer with these word pieces, whose ids are their indices."""
        self.pieces = pieces
        self.vocabulary = len(pieces)
        # This one has no lookup table, which could not go to another task of a cluster.
        self._tokenizer = tf_text.FastWordpieceTokenizer(
            pieces,
            suffix_indicator=self._SUFFIX,
            max_bytes_per_word=4 * self._LONGEST,
            token_out_type=tf.int32,
            unknown_token=self._UNKNOWN,
            no_pretokenization=True,
        )

    @classmethod
    def learn(cls, texts: Iterable[bytes], size: int, sample_bytes: int = SAMPLE) -> "WordPiece":
        """Learns a vocabulary from the texts.

        Args:
          texts: contents of files, in UTF-8.
          size: most pieces to learn.
          sample_bytes: how much text to learn from.
        """
        counts: collections.Counter[str] = collections.Counter()
        seen = 0
        for text in texts:
            counts.update(w.decode() for w in cls._words(tf.constant(text)).numpy())
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
        return self.tokens(tf.constant(text)).numpy()

    def tokens(self, text: tf.Tensor) -> tf.Tensor:
        return self._tokenizer.tokenize(self._words(text)).flat_values

    def decode(self, tokens: Iterable[int]) -> str:
        pieces = (self.pieces[t] for t in tokens)
        text = "".join("�" if p == self._UNKNOWN else p.removeprefix(self._SUFFIX) for p in pieces)
        for sign, mark in self._MARKS:
            text = text.replace(mark, sign)
        return text

    @classmethod
    def _words(cls, text: tf.Tensor) -> tf.Tensor:
        """The words of a text, strings [n], marked and cut."""
        words = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")
        words = cls._cut(tf.strings.regex_replace(words, cls._WORD, rf"\0{cls._END}"))
        for sign, mark in cls._MARKS:
            words = tf.strings.regex_replace(words, sign, mark)
        longest = rf"(?s).{{{cls._LONGEST}}}"
        ends = tf.strings.regex_replace(words, longest, rf"\0{cls._END}")
        return cls._cut(tf.strings.reduce_join(ends, separator=cls._END))

    @classmethod
    def _cut(cls, text: tf.Tensor) -> tf.Tensor:
        """The parts of a text that are not empty, strings [n]."""
        found = tf.strings.split(tf.reshape(text, [1]), cls._END).flat_values
        return tf.boolean_mask(found, found != "")


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
