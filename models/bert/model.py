"""The network: BERT's encoder, and what finds masked tokens."""

import keras
from keras import layers, ops

from models import transformer


def build(size: transformer.Size, dropout: float) -> keras.Model:
    """A masked language model (Devlin et al., 2018), of Keras's own layers.

    Logits are computed at the masked positions only, and with the embeddings of the tokens.

    Args:
      size: of the encoder.
      dropout: dropout rate of the encoder.

    Returns:
      A model from {"tokens": int32 [batch, time], "positions": int32 [batch, masked]} to float32
      logits of the tokens at those positions, [batch, masked, vocabulary].
    """
    tokens = keras.Input([None], dtype="int32", name="tokens")
    positions = keras.Input([None], dtype="int32", name="positions")
    x, token = transformer.encoder(size, tokens, dropout)
    x = ops.take_along_axis(x, ops.expand_dims(positions, -1), axis=1)
    x = layers.Dense(size.width, activation="gelu", name="masked")(x)
    x = layers.LayerNormalization(epsilon=1e-12, name="masked_norm")(x)
    model = keras.Model(
        {"tokens": tokens, "positions": positions}, token(x, reverse=True), name="bert"
    )
    transformer.begin_with_waves(model)
    return model
