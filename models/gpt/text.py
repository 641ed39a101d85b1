"""From text files to batches of token windows."""

import os
import zlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from models.gpt.tokenizers import Tokenizer
from models.way import Way
from tfps import errors

# Files whose name hashes to 0 modulo this number are held out for validation.
_HELD_OUT = 20


def split(texts: dict[str, bytes]) -> tuple[list[bytes], list[bytes]]:
    """Splits texts into (training, validation).

    About one file in twenty is held out. The choice depends on the file's name alone, so that a
    file stays on its side when other files come or go. If there are few files, the end of each file
    is held out instead.
    """
    held = {name for name in texts if zlib.crc32(os.path.basename(name).encode()) % _HELD_OUT == 0}
    if len(texts) < 2 * _HELD_OUT or not held or len(held) == len(texts):
        cuts = {name: len(text) * (_HELD_OUT - 2) // _HELD_OUT for name, text in texts.items()}
        return (
            [text[: cuts[name]] for name, text in texts.items()],
            [text[cuts[name] :] for name, text in texts.items()],
        )
    return (
        [text for name, text in texts.items() if name not in held],
        [text for name, text in texts.items() if name in held],
    )


class Windows:
    """A token stream cut into windows of `context` inputs and the next tokens as targets.

    Attributes:
      tokens: int32 [n], all texts one after another.
      context: length of a window, in tokens.
      count: number of windows.
      bytes_per_token: mean number of bytes of a token.
    """

    def __init__(self, texts: Sequence[bytes], tokenizer: Tokenizer, context: int, what: str):
        """Encodes the texts.

        Args:
          texts: contents of files.
          tokenizer: the tokenizer that encodes the texts.
          context: length of a window, in tokens.
          what: what the error calls the texts, such as "training".

        Raises:
          DataError: the texts have too few tokens for one window.
        """
        self.tokens = tokenizer.encode(b"".join(texts))
        self.context = context
        self.count = (len(self.tokens) - 1) // context
        self.bytes_per_token = sum(map(len, texts)) / max(1, len(self.tokens))
        if self.count < 1:
            raise errors.DataError(
                f"--data: the {what} text has {len(self.tokens)} tokens, fewer than one window of "
                f"--context={context} and the token after it; give more text or a smaller --context"
            )

    def _batches(self, starts: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        tokens = tf.constant(self.tokens)
        span = tf.range(self.context + 1)

        def cut(starts):
            windows = tf.gather(tokens, starts[:, None] + span)
            return windows[:, :-1], windows[:, 1:]

        return starts.batch(batch_size).map(cut).prefetch(2)

    def shuffled(self, batch_size: int, seed: int) -> tf.data.Dataset:
        """An endless dataset of full batches (inputs, targets), int32 [batch_size, context].

        Each pass cuts the stream at a different offset and visits the windows in a different order.
        A batch may hold windows of two passes.
        """
        n, context = self.count, self.context
        slack = len(self.tokens) - 1 - n * context

        def one_pass(i):
            offset = tf.random.stateless_uniform(
                [], [seed, tf.cast(i, tf.int32)], 0, slack + 1, tf.int32
            )
            order = tf.random.experimental.stateless_shuffle(
                tf.range(n), [seed + 1, tf.cast(i, tf.int32)]
            )
            return tf.data.Dataset.from_tensor_slices(order * context + offset)

        starts = tf.data.Dataset.range(tf.int32.max).flat_map(one_pass)
        return self._batches(starts, batch_size)

    def describe(self) -> str:
        """How much text there is."""
        return f"{len(self.tokens):,} tokens of training text"

    def feed(self, way: Way, batch_size: int, seed: int) -> tf.data.Dataset:
        """What `fit` is given: the chief reads the text, and deals out the batches of `shuffled`.

        Args:
          way: the connected way of training.
          batch_size: windows in a batch.
          seed: of the order.
        """
        return self.shuffled(batch_size, seed)

    def spread(self, batch_size: int, batches: int) -> tf.data.Dataset:
        """A dataset of at most `batches` batches of windows, evenly spread over the stream."""
        count = min(self.count, batches * batch_size)
        starts = np.linspace(0, self.count - 1, count).astype(np.int32) * self.context
        return self._batches(tf.data.Dataset.from_tensor_slices(starts), batch_size)
