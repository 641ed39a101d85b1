"""The network: BERT's encoder, and a layer that gives each token a tag."""

import keras
from keras import layers

from models import transformer


def build(size: transformer.Size, tags: int, dropout: float) -> keras.Model:
    """A tagger of tokens, of Keras's own layers.

    Args:
      size: of the encoder.
      tags: number of tags.
      dropout: dropout rate of the encoder, and before the last layer.

    Returns:
      A model from int32 tokens [batch, time] to float32 logits [batch, time, tags].
    """
    tokens = keras.Input([None], dtype="int32", name="tokens")
    x, _ = transformer.encoder(size, tokens, dropout)
    x = layers.Dropout(dropout, name="last_dropout")(x)
    # Logits, and so the loss, are float32 whatever the layers compute in.
    return keras.Model(tokens, layers.Dense(tags, dtype="float32", name="logits")(x), name="ner")
