"""The network: two tables of vectors, and what they make of all pairs of a stretch of text."""

import functools

import keras
from keras import layers, ops

Tensor = keras.KerasTensor

VECTORS = "vectors"  # The layer whose rows are the word vectors.
_LARGEST = 6.0  # Pairs with a larger score, either way, are not trained.


def build(
    vocabulary: int, width: int, window: int, negatives: int, most_pairs: float
) -> keras.Model:
    """Skip-gram with negative sampling (Mikolov et al., 2013), of whole stretches of text.

    A word is paired with each word at most `window` places away in its line. The weight of a pair
    falls with the distance, as often as a window whose size is drawn from 1 to `window` has the
    pair. Each pair has the weight of `negatives` noise words, for which stand those that all words
    of the stretch share (Ji et al., 2016): so one product of matrices has all scores, and each word
    is looked up once, however many pairs it is in.

    A frequent word has many pairs in a batch, and its row the sum of their gradients, all computed
    before any of them was used; one after the other, the later ones would be small. So a row of
    which a batch has more than `most_pairs` pairs gets their mean gradient that many times.

    Args:
      vocabulary: number of words.
      width: elements of a vector.
      window: largest distance of a pair.
      negatives: number of noise words that a pair counts for.
      most_pairs: of a row in a batch, of words and noise words, that are summed up.

    Returns:
      A model from a dictionary of `words`, int32 [batch, length], `places`, int32 [batch, length],
      where they are in the text, with gaps of more than `window` between lines, and `noise`, int32
      [batch, noise words], to float32 [batch], the loss of a word, averaged over the stretch.
    """
    words = keras.Input([None], dtype="int32", name="words")
    places = keras.Input([None], dtype="int32", name="places")
    noise = keras.Input([None], dtype="int32", name="noise")
    spread = keras.initializers.RandomUniform(-0.5 / width, 0.5 / width)
    centres = layers.Embedding(vocabulary, width, embeddings_initializer=spread, name=VECTORS)
    contexts = layers.Embedding(vocabulary, width, embeddings_initializer="zeros", name="contexts")
    pairs = pair_weights(places, window)
    with_words = ops.sum(pairs, 2)
    with_noise = with_words * negatives
    # All words of a stretch share its noise words alike.
    ones = ops.ones_like(noise, "float32")
    of_noise = ops.sum(with_noise, 1, keepdims=True) * ones / ops.sum(ones, 1, keepdims=True)
    limited = functools.partial(_limited, vocabulary=vocabulary, most=most_pairs)
    (rows,) = limited([centres(words)], [words], [with_words + with_noise])
    met, drawn = limited([contexts(words), contexts(noise)], [words, noise], [with_words, of_noise])
    met, drawn = (
        ops.clip(ops.matmul(rows, ops.transpose(of, [0, 2, 1])), -_LARGEST, _LARGEST)
        for of in (met, drawn)
    )
    losses = ops.sum(pairs * ops.softplus(-met), 2)
    losses = losses + with_noise * ops.mean(ops.softplus(drawn), 2)
    return keras.Model(
        {"words": words, "places": places, "noise": noise}, ops.mean(losses, 1), name="word2vec"
    )


def pair_weights(places: Tensor, window: int) -> Tensor:
    """How often a window of random size has each pair: float32 [batch, length, length].

    Args:
      places: int32 [batch, length].
      window: the largest size. Sizes from 1 on are equally likely.
    """
    distance = ops.abs(places[:, :, None] - places[:, None, :])
    share = ops.cast(ops.maximum(window + 1 - distance, 0), "float32") / window
    return ops.where(distance > 0, share, 0.0)


def _limited(
    rows: list[Tensor], ids: list[Tensor], pairs: list[Tensor], vocabulary: int, most: float
) -> list[Tensor]:
    """Rows of one table whose gradients are limited.

    Args:
      rows: looked-up rows, float32 [batch, n, width] each.
      ids: their numbers, int32 [batch, n] each.
      pairs: in how many pairs each is, float32 [batch, n] each.
      vocabulary: number of rows of the table.
      most: pairs of a row whose gradients are summed up.

    Returns:
      The same rows. The gradients of a row that has more pairs, wherever it was looked up, are
      multiplied by `most` and divided by its pairs.
    """
    flat_ids, flat_pairs = (
        ops.concatenate([ops.reshape(one, [-1]) for one in several]) for several in (ids, pairs)
    )
    totals = ops.segment_sum(flat_pairs, flat_ids, vocabulary)
    found = []
    for its_rows, its_ids in zip(rows, ids, strict=True):
        share = ops.minimum(1.0, most / ops.maximum(ops.take(totals, its_ids), 1e-6))[..., None]
        found.append(share * its_rows + ops.stop_gradient((1 - share) * its_rows))
    return found


def as_it_is(_: Tensor, loss: Tensor) -> Tensor:
    """The loss function of a model whose output is the loss."""
    return loss
