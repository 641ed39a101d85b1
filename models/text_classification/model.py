"""The network: the mean of word vectors, and short runs of words that stand out."""

import keras
import numpy as np
from keras import layers, ops

_RUNS = (2, 3, 4)  # Words of a run that a convolution sees.


def vectorizer(texts: np.ndarray, vocabulary: int, length: int) -> layers.TextVectorization:
    """A layer from texts to numbers of words, int32 or int64 [batch, length], filled up with 0.

    Args:
      texts: to learn the most frequent words of.
      vocabulary: most numbers, of which 0 is for no word and 1 for words that are not known.
      length: number of words; what a text has beyond is left out.
    """
    layer = layers.TextVectorization(max_tokens=vocabulary, output_sequence_length=length)
    layer.adapt(texts)
    return layer


def build(
    vocabulary: int, length: int, classes: int, width: int, filters: int, drop: float
) -> keras.Model:
    """Convolutions over words (Kim, 2014), beside the mean of their vectors (fastText, 2017).

    Args:
      vocabulary: number of words.
      length: words of a text.
      classes: number of classes.
      width: elements of a word's vector.
      filters: for each length of runs.
      drop: dropout rate before the last layer.

    Returns:
      A model from int32 [batch, length] to float32 logits [batch, classes].
    """
    words = keras.Input([length], dtype="int32", name="words")
    rows = layers.Embedding(vocabulary, width, name="rows")(words)
    rows = layers.SpatialDropout1D(0.2)(rows)
    there = ops.cast(words > 0, "float32")[:, :, None]
    # Divided by the root of their number, so that long texts may be the surer.
    bag = ops.sum(rows * there, 1) / ops.sqrt(ops.maximum(ops.sum(there, 1), 1.0))
    runs = [
        layers.GlobalMaxPooling1D()(
            layers.Conv1D(filters, size, activation="relu", name=f"runs_of_{size}")(rows)
        )
        for size in _RUNS
    ]
    x = layers.Dropout(drop)(layers.Concatenate()([bag, *runs]))
    return keras.Model(words, layers.Dense(classes, dtype="float32", name="logits")(x))


def whole(words: layers.TextVectorization, network: keras.Model) -> keras.Model:
    """A model from texts, [batch], to probabilities, float32 [batch, classes]."""
    texts = keras.Input([], dtype="string", name="texts")
    chances = layers.Softmax(name="chances")(network(words(texts)))
    return keras.Model(texts, chances, name="text_classification")
