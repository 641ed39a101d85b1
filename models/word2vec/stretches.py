"""From a text to batches of stretches: frequent words left out, noise words drawn."""

import numpy as np
import tensorflow as tf

import tfps
from models.word2vec.corpus import Corpus

_PART = 1 << 20  # Words of the text that are prepared at a time.
_FLATTENED = 0.75  # Noise words are drawn in proportion to this power of their counts.


class Stretches:
    """A text, to be cut into stretches of `length` words anew in each pass.

    Attributes:
      length: number of words of a stretch.
      count: number of stretches of a pass, on average.
    """

    def __init__(self, corpus: Corpus, window: int, sample: float, length: int, noise: int):
        """Prepares a text.

        Args:
          corpus: the text.
          window: largest distance of a pair of words.
          sample: share of a text from which on a word is frequent, so that occurrences are left out
            at random, as in word2vec's own program; 0 keeps all words.
          length: number of words of a stretch.
          noise: number of noise words of a stretch.

        Raises:
          DataError: there is less than one stretch.
        """
        self.length, self._window, self._noise = length, window, noise
        shares = corpus.counts / corpus.counts.sum()
        # A word that is `sample` of the text is kept, and each of more frequent ones the less.
        kept = np.sqrt(sample / shares) + sample / shares if sample else np.ones(len(shares))
        self._kept = np.minimum(kept, 1).astype(np.float32)
        noisy = corpus.counts**_FLATTENED
        self._cumulative = np.cumsum(noisy / noisy.sum())
        self._ids, self._lines = corpus.ids, corpus.lines
        self.count = int(self._kept[corpus.ids].sum()) // length
        if self.count < 1:
            raise tfps.DataError(
                f"--data has {len(corpus.ids)} words, too few for a stretch of --length={length}; "
                "give more text, or a smaller --length"
            )

    def shuffled(self, batch_size: int, seed: int) -> tf.data.Dataset:
        """An endless dataset of full batches (inputs, zeros), as the model takes them.

        Each pass leaves out other words and begins stretches elsewhere, so that no pair of words is
        always apart. Stretches are shuffled within a million words of text.

        Args:
          batch_size: number of stretches in a batch.
          seed: of all that is drawn.
        """
        parts = -(-len(self._ids) // _PART)
        ids, lines, kept = map(tf.constant, (self._ids, self._lines, self._kept))

        def one_part(i: tf.Tensor) -> tf.data.Dataset:
            first = i % parts * _PART
            words, places = ids[first : first + _PART], lines[first : first + _PART]
            drawn = tf.random.stateless_uniform(tf.shape(words), [seed, i])
            stays = drawn < tf.gather(kept, words)
            words, places = tf.boolean_mask(words, stays), tf.boolean_mask(places, stays)
            # Lines are numbered in order, so places of two lines are never within a window.
            places = (places - places[:1]) * self._window + tf.range(tf.size(words))
            return tf.data.Dataset.from_tensor_slices(self._cut(words, places, seed, i))

        stretches = tf.data.Dataset.range(tf.int64.max).flat_map(one_part)
        return stretches.batch(batch_size).enumerate().map(self._with_noise(seed)).prefetch(2)

    def fixed(self, most: int) -> tf.data.Dataset:
        """A pass over the text, as batches of up to `most` stretches; the same each time."""
        batch = min(most, self.count)
        batches = self.count // batch
        counted = tf.data.experimental.assert_cardinality(batches)
        return self.shuffled(batch, seed=0).take(batches).apply(counted)

    def _cut(self, words: tf.Tensor, places: tf.Tensor, seed: int, i: tf.Tensor) -> tuple:
        """Cuts part i of the text into rows [count, length], in a random order."""
        rest = tf.minimum(tf.size(words), self.length)
        offset = tf.random.stateless_uniform([], [seed + 1, i], 0, rest, tf.int32)
        count = (tf.size(words) - offset) // self.length
        order = tf.random.experimental.stateless_shuffle(tf.range(count), [seed + 2, i])

        def rows(of: tf.Tensor) -> tf.Tensor:
            cut = tf.reshape(of[offset : offset + count * self.length], [count, self.length])
            return tf.gather(cut, order)

        return rows(words), rows(places)

    def _with_noise(self, seed: int):
        cumulative = tf.constant(self._cumulative)

        def add(i: tf.Tensor, stretches: tuple) -> tuple:
            words, places = stretches
            shape = [tf.shape(words)[0], self._noise]
            drawn = tf.random.stateless_uniform(shape, [seed + 3, i], dtype=tf.float64)
            noise = tf.searchsorted(cumulative, tf.reshape(drawn, [-1]), side="right")
            noise = tf.reshape(tf.minimum(noise, len(self._cumulative) - 1), shape)
            x = {"words": words, "places": places, "noise": noise}
            return x, tf.zeros(shape[:1])

        return add
