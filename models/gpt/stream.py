"""Text that need not fit in memory, as windows of tokens that the workers read themselves."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

import tfps
from models import streams
from models.gpt.tokenizers import Tokenizer
from models.way import Way


def windows(
    part: streams.Part, tokenizer: Tokenizer, context: int, order: int | None
) -> tf.data.Dataset:
    """A dataset of windows, int32 [context + 1]: the tokens of the text as they come.

    Each line has a newline before it, whatever ends lines in the files. Tokens after the last full
    window are left out.

    Args:
      part: what is read.
      tokenizer: what makes tokens of it.
      context: inputs of a window, in tokens; a window has one token more, the last target.
      order: of the files, as in `streams.lines`.
    """

    def tokens(lines: tf.Tensor) -> tf.Tensor:
        # An indent is a token with the newline before it, so a newline begins each line.
        return tokenizer.tokens(tf.strings.reduce_join("\n" + lines))

    return streams.tokens(part, order, tokens).rebatch(context + 1, drop_remainder=True)


class Stream:
    """Text to train on, which is read while training goes on.

    Attributes:
      count: about how many windows the text has.
    """

    def __init__(
        self, part: streams.Part, tokenizer: Tokenizer, context: int, bytes_per_token: float
    ):
        """Reads nothing.

        Args:
          part: what will be read.
          tokenizer: what makes tokens of it.
          context: length of a window, in tokens.
          bytes_per_token: mean number of bytes of a token, to guess how many there are.

        Raises:
          DataError: a file is not there any more.
        """
        self._part, self._tokenizer, self._context = part, tokenizer, context
        self._tokens = int(streams.size(part) / bytes_per_token)
        self.count = max(1, self._tokens // (context + 1))

    def describe(self) -> str:
        """How much text there is."""
        return f"about {self._tokens:,} tokens of training text in {len(self._part.files):,} files"

    def batches(self, batch_size: int, seed: int, worker: tfps.Context) -> tf.data.Dataset:
        """An endless dataset of a worker's batches (inputs, targets), int32 [batch_size, context].

        Files come in another order in each pass; who reads what says `streams.shared`.

        Args:
          batch_size: windows in a batch.
          seed: of the order.
          worker: the worker that reads; each has its share.
        """

        def windows_of(part: streams.Part) -> tf.data.Dataset:
            return windows(part, self._tokenizer, self._context, seed)

        batches = streams.shared(self._part, windows_of, batch_size, seed, worker)
        return batches.map(lambda found: (found[:, :-1], found[:, 1:])).prefetch(2)

    def feed(self, way: Way, batch_size: int, seed: int) -> Any:
        """What `fit` is given, so that each worker reads its share; arguments as of `batches`."""
        return way.reading(lambda worker: self.batches(batch_size, seed, worker))


def is_large(files: Sequence[str], limit: int) -> bool:
    """Whether files have more bytes than the limit."""
    return streams.size(streams.Part(files, "all")) > limit
