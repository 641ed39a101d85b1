"""From files of text to batches of windows with masked tokens, read as a stream."""

import os
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import tfps
from models import word_pieces

# One file or block of lines in so many is held out for validation.
_HELD_OUT = 20
_BLOCK = 32  # lines

_MASKED = 0.15  # of the tokens, as in BERT

# The parts of a page that are no text: its head, and tags.
_NO_TEXT = "(?is)<head.*?</head>|<script.*?</script>|<style.*?</style>|<[^>]*>"
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": " ", "&amp;": "&"}

_MANY = 20  # files for each worker
_SAMPLE = 100_000  # lines to learn a vocabulary from
_LINES = 64  # that are tokenized at a time
_SHUFFLED = 4096  # windows among which the next one is drawn


class Part(NamedTuple):
    """Some of the text.

    Attributes:
      files: paths of text files, or of pages of HTML (`*.html`, `*.htm`).
      lines: which lines of the files: "all", or, of blocks of lines, those for "training" or those
        for "validation".
    """

    files: Sequence[str]
    lines: str


def split(files: Sequence[str]) -> tuple[Part, Part]:
    """Splits text into (training, validation).

    About one file in twenty is held out, by the file's name alone. If there are few files, one in
    twenty blocks of lines is held out instead.

    Args:
      files: paths.
    """
    held = [n for n in files if zlib.crc32(os.path.basename(n).encode()) % _HELD_OUT == 0]
    if len(files) < 2 * _HELD_OUT or not held or len(held) == len(files):
        return Part(files, "training"), Part(files, "validation")
    return Part([n for n in files if n not in set(held)], "all"), Part(held, "all")


def lines(part: Part, order: int) -> tf.data.Dataset:
    """A dataset of the lines of the files, one file after another, as strings [].

    Args:
      part: what is read. A text file is never in memory as a whole; a page is.
      order: seed of the order of the files, which is another one each time the dataset is read.
    """

    def of_file(name: tf.Tensor) -> tf.data.Dataset:
        is_page = tf.strings.regex_full_match(name, r"(?i).*\.html?")
        pages = tf.data.Dataset.from_tensor_slices(tf.boolean_mask([name], [is_page]))
        plain = tf.data.TextLineDataset(tf.boolean_mask([name], [~is_page]))
        return plain.concatenate(pages.flat_map(_page)).enumerate().filter(chosen)

    def chosen(number: tf.Tensor, line: tf.Tensor) -> tf.Tensor:
        held = number // _BLOCK % _HELD_OUT == _HELD_OUT - 1
        return {"all": tf.constant(True), "training": ~held, "validation": held}[part.lines]

    names = list(part.files)
    files = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names), order)
    return files.flat_map(of_file).map(lambda number, line: line)


def _page(name: tf.Tensor) -> tf.data.Dataset:
    text = tf.strings.regex_replace(tf.io.read_file(name), _NO_TEXT, "")
    for entity, sign in _ENTITIES.items():
        text = tf.strings.regex_replace(text, entity, sign)
    return tf.data.Dataset.from_tensor_slices(tf.strings.split(text, "\n"))


def sample(part: Part) -> tf.data.Dataset:
    """A dataset of batches of lines, strings [n], from which a vocabulary is learned.

    Args:
      part: what is read; of many lines, some of the first in an order drawn at random.
    """
    return lines(part, order=0).batch(_LINES).map(_valid).take(_SAMPLE // _LINES)


def windows(part: Part, pieces: Sequence[str], context: int, order: int) -> tf.data.Dataset:
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

    cut = lines(part, order).batch(_LINES).map(tokens).rebatch(context - 2, drop_remainder=True)
    return cut.map(lambda t: tf.concat([[cls], t, [sep]], 0))


def _valid(text: tf.Tensor) -> tf.Tensor:
    """The text with replacements for what is no UTF-8, which the tokenizers refuse."""
    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")


def batches(
    part: Part,
    pieces: Sequence[str],
    context: int,
    batch_size: int,
    seed: int,
    worker: tfps.Context,
) -> tf.data.Dataset:
    """An endless dataset of batches of masked windows, as `masked` makes them.

    Files come in another order in each pass, and windows are shuffled among those that are near.
    Workers share the files if these are many, so that the shares are alike, and else the windows.

    Args:
      part: what is read.
      pieces: the vocabulary.
      context: length of a window, in tokens.
      batch_size: windows in a batch.
      seed: of the orders and of what is masked.
      worker: the worker that reads; each has its share.
    """
    index, workers = worker.worker_index, worker.num_workers
    if len(part.files) >= _MANY * workers:
        ours = windows(part._replace(files=worker.shard(part.files)), pieces, context, seed)
    else:  # All workers read the files in the same order, since each takes its share of that.
        ours = windows(part, pieces, context, seed).shard(workers, index)
    endless = ours.repeat().shuffle(_SHUFFLED, seed)
    drawn = endless.batch(batch_size, drop_remainder=True).enumerate()
    own = tf.constant([seed, index], tf.int64)

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
    part: Part, pieces: Sequence[str], context: int, count: int
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
