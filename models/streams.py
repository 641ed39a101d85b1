"""Text that need not fit in memory: files are read line by line, by the workers that train."""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

import tfps

# One file or block of lines in so many is held out for validation.
HELD_OUT = 20
_BLOCK = 32  # lines

# The parts of a page that are no text: its head, and tags.
_NO_TEXT = "(?is)<head.*?</head>|<script.*?</script>|<style.*?</style>|<[^>]*>"
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": " ", "&amp;": "&"}

LINES = 64  # that are tokenized at a time
_MANY = 20  # files for each worker
_SHUFFLED = 4096  # windows among which the next one is drawn
_SAMPLED = 16  # files, of which a sample is at least, if there are so many


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
    """Splits text into (training, validation), without reading any.

    About one file in twenty is held out, by the file's name alone. If there are few files, one in
    twenty blocks of lines is held out instead.

    Args:
      files: paths.
    """
    held = [n for n in files if zlib.crc32(os.path.basename(n).encode()) % HELD_OUT == 0]
    if len(files) < 2 * HELD_OUT or not held or len(held) == len(files):
        return Part(files, "training"), Part(files, "validation")
    return Part([n for n in files if n not in set(held)], "all"), Part(held, "all")


def lines(part: Part, order: int | None) -> tf.data.Dataset:
    """A dataset of the lines of the files, one file after another, as strings [].

    Args:
      part: what is read. A text file is never in memory as a whole; a page is.
      order: seed of the order of the files, which is another one each time the dataset is read;
        None for the order in which `part` names the files.
    """

    names = list(part.files)
    files = tf.data.Dataset.from_tensor_slices(names)
    if order is not None:
        files = files.shuffle(len(names), order)
    return files.flat_map(lambda name: _of_file(name, part.lines))


def _of_file(name: tf.Tensor, chosen: str) -> tf.data.Dataset:
    """The lines of a file, of which some are chosen, as `Part.lines` says."""
    is_page = tf.strings.regex_full_match(name, r"(?i).*\.html?")
    pages = tf.data.Dataset.from_tensor_slices(tf.boolean_mask([name], [is_page]))
    plain = tf.data.TextLineDataset(tf.boolean_mask([name], [~is_page]))
    found = plain.concatenate(pages.flat_map(_page))
    if chosen == "all":
        return found

    # Files with few lines are not alike in which of their blocks are held out, if any.
    base = tf.strings.regex_replace(name, ".*/", "")
    first = tf.strings.to_hash_bucket_fast(base, HELD_OUT)

    def belongs(number: tf.Tensor, line: tf.Tensor) -> tf.Tensor:
        held = (number // _BLOCK + first) % HELD_OUT == 0
        return held if chosen == "validation" else ~held

    return found.enumerate().filter(belongs).map(lambda number, line: line)


def _page(name: tf.Tensor) -> tf.data.Dataset:
    text = tf.strings.regex_replace(tf.io.read_file(name), _NO_TEXT, "")
    for entity, sign in _ENTITIES.items():
        text = tf.strings.regex_replace(text, entity, sign)
    return tf.data.Dataset.from_tensor_slices(tf.strings.split(text, "\n"))


def tokens(
    part: Part, order: int | None, tokenize: Callable[[tf.Tensor], tf.Tensor]
) -> tf.data.Dataset:
    """A dataset of the tokens of the text as they come, int32 [n], of some lines at a time.

    Args:
      part: what is read.
      order: as in `lines`.
      tokenize: from strings [m], lines without their ends, to int32 [n].
    """
    return lines(part, order).batch(LINES).map(tokenize)


def shared(
    part: Part,
    windows: Callable[[Part], tf.data.Dataset],
    batch_size: int,
    seed: int,
    worker: tfps.Context,
) -> tf.data.Dataset:
    """An endless dataset of batches of windows, of which each worker has its share.

    Windows are shuffled among those that are near. Workers share the files if these are many, so
    that the shares are alike, and else the windows.

    Args:
      part: what is read.
      windows: makes a dataset of the windows of a part. Of the same part it makes the same one for
        all workers.
      batch_size: windows in a batch.
      seed: of the order.
      worker: the worker that reads.
    """
    index, workers = worker.worker_index, worker.num_workers
    if len(part.files) >= _MANY * workers:
        ours = windows(part._replace(files=worker.shard(part.files)))
    else:  # All workers read the files in the same order, since each takes its share of that.
        ours = windows(part).shard(workers, index)
    endless = ours.repeat().shuffle(_SHUFFLED, seed)
    return endless.batch(batch_size, drop_remainder=True)


def sample(part: Part, most: int) -> Iterator[bytes]:
    """Some of the text: beginnings of files, which are always the same.

    Args:
      part: of which no more is read than is needed.
      most: bytes of the sample.

    Yields:
      Lines with their ends, some of one file at a time. No file gives more than a sixteenth of the
      sample, or than its equal share if there are fewer files, so the sample may be smaller.
    """
    names = sorted(part.files, key=lambda name: (zlib.crc32(name.encode()), name))
    share = most // min(len(names), _SAMPLED)

    def counted(before: tf.Tensor, line: tf.Tensor) -> tuple[tf.Tensor, tuple]:
        after = before + tf.strings.length(line) + 1
        return after, (after, line)

    def beginning(name: tf.Tensor) -> tf.data.Dataset:
        read = _of_file(name, part.lines).scan(tf.constant(0), counted)
        kept = read.take_while(lambda after, _: after <= share).map(lambda _, line: line)
        return kept.batch(LINES).map(lambda some: tf.strings.reduce_join(some + "\n"))

    left = most
    for text in tf.data.Dataset.from_tensor_slices(names).flat_map(beginning).as_numpy_iterator():
        if len(text) > left:
            return
        left -= len(text)
        yield text


def size(part: Part) -> int:
    """About how many bytes of text a part has, by the sizes of its files.

    Raises:
      DataError: a file is not there any more.
    """
    try:
        whole = sum(os.path.getsize(name) for name in part.files)
    except OSError as e:
        raise tfps.DataError(f"--data: {e.filename}: {e.strerror.lower()}") from e
    share = {"all": HELD_OUT, "training": HELD_OUT - 1, "validation": 1}[part.lines]
    return whole * share // HELD_OUT
