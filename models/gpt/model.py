"""The network: a decoder-only transformer of Keras's own layers."""

import keras
from keras import layers, ops


def build(
    vocabulary: int,
    layers_: int,
    width: int,
    heads: int,
    context: int,
    dropout: float,
    tied: bool = False,
) -> keras.Model:
    """A pre-norm GPT (Radford et al., "Language Models are Unsupervised Multitask Learners").

    The model consists of Keras's own layers only, so that plain Keras loads a saved model.

    Args:
      vocabulary: number of token ids.
      layers_: number of blocks.
      width: width of the residual stream, a multiple of `heads`.
      heads: number of attention heads in a block.
      context: length of the longest sequence, in tokens.
      dropout: dropout rate in attention and on both branches of a block.
      tied: whether the logits are computed with the embeddings of the tokens, as GPT-2's are, and
        not with a matrix of their own.

    Returns:
      A model from int32 tokens [batch, time] to float32 logits [batch, time, vocabulary], where
      time is at most `context`.
    """
    tokens = keras.Input([None], dtype="int32", name="tokens")
    positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    init = keras.initializers.RandomNormal(stddev=0.02)
    # Logits, and so the loss, are float32 whatever the layers compute in.
    if tied:
        embed = layers.ReversibleEmbedding(
            vocabulary, width, embeddings_initializer=init, reverse_dtype="float32", name="token"
        )
    else:
        embed = layers.Embedding(vocabulary, width, embeddings_initializer=init, name="token")
    x = embed(tokens)
    embed_position = layers.Embedding(context, width, embeddings_initializer=init, name="position")
    x = x + embed_position(positions)
    x = layers.Dropout(dropout, name="embedding_dropout")(x)
    for i in range(layers_):
        h = layers.LayerNormalization(epsilon=1e-5, name=f"block{i}_attention_norm")(x)
        h = layers.MultiHeadAttention(
            heads,
            width // heads,
            dropout=dropout,
            kernel_initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            name=f"block{i}_attention",
        )(h, h, use_causal_mask=True)
        x = x + layers.Dropout(dropout, name=f"block{i}_attention_dropout")(h)
        h = layers.LayerNormalization(epsilon=1e-5, name=f"block{i}_mlp_norm")(x)
        h = layers.Dense(4 * width, activation="gelu", name=f"block{i}_mlp_in")(h)
        h = layers.Dense(width, name=f"block{i}_mlp_out")(h)
        x = x + layers.Dropout(dropout, name=f"block{i}_mlp_dropout")(h)
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    if tied:
        logits = embed(x, reverse=True)
    else:
        logits = layers.Dense(vocabulary, use_bias=False, dtype="float32", name="logits")(x)
    return keras.Model(tokens, logits, name="gpt")


def context_of(model: keras.Model) -> int:
    """The length of the longest sequence that a model of `build` takes, in tokens."""
    return model.get_layer("position").input_dim
