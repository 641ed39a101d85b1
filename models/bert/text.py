"""From files of text to batches of windows with masked tokens, read as a stream."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

import tfps
from models import streams, word_pieces

_MASKED = 0.15  # of the tokens, as in BERT

_SAMPLE = 100_000  # lines to learn a vocabulary from


def sample(part: streams.Part) -> tf.data.Dataset:
    """A dataset of batches of lines, strings [n], from which a vocabulary is learned.

    Args:
      part: what is read; of many lines, some of the first in an order drawn at random.
    """
    return streams.tokens(part, 0, _valid).take(_SAMPLE // streams.LINES)


def windows(part: streams.Part, pieces: Sequence[str], context: int, order: int) -> tf.data.Dataset:
    """A dataset of windows, int32 [context]: `[CLS]`, the tokens of the text as they come, `[SEP]`.

    Args:
      part: what is read. Tokens after the last full window are left out.
      pieces: the vocabulary.
      context: length of a window, in tokens.
      order: seed of the order of the files, which is another one each time the dataset is read.
    """
    tokenizer = word_pieces.tokenizer(list(pieces))
    cls, sep = pieces.index(word_pieces.CLS), pieces.index(word_pieces.SEP)

    def tokens(batch: tf.Tensor) -> tf.Tensor:
        return tokenizer.tokenize(_valid(batch)).flat_values

    found = streams.tokens(part, order, tokens)
    cut = found.rebatch(context - 2, drop_remainder=True)
    return cut.map(lambda t: tf.concat([[cls], t, [sep]], 0))


def _valid(text: tf.Tensor) -> tf.Tensor:
    """The text with replacements for what is no UTF-8, which the tokenizers refuse."""
    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")


def batches(
    part: streams.Part,
    pieces: Sequence[str],
    context: int,
    batch_size: int,
    seed: int,
    worker: tfps.Context,
) -> tf.data.Dataset:
    """An endless dataset of batches of masked windows, as `masked` makes them.

    Files come in another order in each pass; who reads what says `streams.shared`.

    Args:
      part: what is read.
      pieces: the vocabulary.
      context: length of a window, in tokens.
      batch_size: windows in a batch.
      seed: of the orders and of what is masked.
      worker: the worker that reads; each has its share.
    """

    def windows_of(some: streams.Part) -> tf.data.Dataset:
        return windows(some, pieces, context, seed)

    drawn = streams.shared(part, windows_of, batch_size, seed, worker).enumerate()
    own = tf.constant([seed, worker.worker_index], tf.int64)

    def mask(number: tf.Tensor, batch: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        return masked(batch, pieces, tf.random.fold_in(own, number))

    return drawn.map(mask).prefetch(2)


def masked(
    tokens: tf.Tensor, pieces: Sequence[str], seed: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Draws the tokens that are to be found, 15% of each window.

    As in BERT, 80% of them become `[MASK]`, 10% a token drawn at random, and 10% stay. `[CLS]` and
    `[SEP]`, which windows begin and end with, are not drawn.

    Args:
      tokens: int32 [batch, context], windows.
      pieces: the vocabulary.
      seed: two whole numbers; the same seed draws the same tokens.

    Returns:
      {"tokens": int32 [batch, context], "positions": int32 [batch, masked], in ascending order},
      and int32 [batch, masked], the tokens that were at these positions.
    """
    batch, context = tf.shape(tokens)[0], tokens.shape[1]
    count = max(1, round(_MASKED * (context - 2)))
    chance, kind, other = tf.unstack(tf.random.split(seed, 3))
    noise = tf.random.stateless_uniform([batch, context - 2], chance)
    positions = 1 + tf.sort(tf.math.top_k(noise, count).indices, axis=1)
    found = tf.gather(tokens, positions, batch_dims=1)
    first = len(word_pieces.SPECIAL)
    drawn = tf.random.stateless_uniform([batch, count], other, first, len(pieces), tf.int32)
    draw = tf.random.stateless_uniform([batch, count], kind)
    put = tf.where(draw < 0.8, pieces.index(word_pieces.MASK), tf.where(draw < 0.9, drawn, found))
    rows = tf.broadcast_to(tf.range(batch)[:, None], [batch, count])
    masked_ = tf.tensor_scatter_nd_update(tokens, tf.stack([rows, positions], -1), put)
    return {"tokens": masked_, "positions": positions}, found


def held_out(
    part: streams.Part, pieces: Sequence[str], context: int, count: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Masked windows to validate on, always the same, as `masked` makes them.

    Args:
      part: what is read, as far as needed.
      pieces: the vocabulary.
      context: length of a window, in tokens.
      count: most windows.

    Raises:
      DataError: there is less than a window.
    """
    found = list(windows(part, pieces, context, order=0).take(count))
    if not found:
        raise tfps.DataError(
            f"--data: the text held out for validation has less than a window of "
            f"--context={context} tokens; give more text, or a smaller --context"
        )
    x, y = masked(tf.stack(found), pieces, tf.constant([0, 0], tf.int64))
    return {name: value.numpy() for name, value in x.items()}, y.numpy()
