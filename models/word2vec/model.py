"""The network: two tables of vectors, and what they make of all pairs of a stretch of text."""

import keras
from keras import layers, ops

Tensor = keras.KerasTensor

VECTORS = "vectors"  # The layer whose rows are the word vectors.


def build(vocabulary: int, width: int, window: int, negatives: int) -> keras.Model:
    """Skip-gram with negative sampling (Mikolov et al., 2013), of whole stretches of text.

    A word is paired with each word at most `window` places away in its line. The weight of a pair
    falls with the distance, as often as a window whose size is drawn from 1 to `window` has the
    pair. Each pair has the weight of `negatives` noise words, for which stand those that all words
    of the stretch share (Ji et al., 2016): so one product of matrices has all scores, and each word
    is looked up once, however many pairs it is in.

    Args:
      vocabulary: number of words.
      width: elements of a vector.
      window: largest distance of a pair.
      negatives: number of noise words that a pair counts for.

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
    rows = centres(words)
    met, drawn = (ops.matmul(rows, ops.transpose(contexts(w), [0, 2, 1])) for w in (words, noise))
    pairs = pair_weights(places, window)
    of_noise = ops.sum(pairs, 2) * negatives
    losses = ops.sum(pairs * ops.softplus(-met), 2) + of_noise * ops.mean(ops.softplus(drawn), 2)
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


def as_it_is(_: Tensor, loss: Tensor) -> Tensor:
    """The loss function of a model whose output is the loss."""
    return loss
