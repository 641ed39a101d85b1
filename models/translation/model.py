"""The network: a transformer with an encoder and a decoder, of Keras's own layers."""

import keras
from keras import layers, ops


def build(
    vocabulary: int, layers_: int, width: int, heads: int, longest: int, dropout: float
) -> keras.Model:
    """A pre-norm transformer (Vaswani et al., 2017; Xiong et al., 2020).

    Source and target share one embedding, since they share their word pieces. Tokens with the id 0
    are padding, which no token looks at.

    Args:
      vocabulary: number of token ids.
      layers_: number of blocks of the encoder, and of the decoder.
      width: width of the residual stream, a multiple of `heads`.
      heads: number of attention heads in a block.
      longest: length of the longest sequence, in tokens.
      dropout: dropout rate on the branches of a block.

    Returns:
      A model from a dictionary of int32 tokens, `source` [batch, s] and `target` [batch, t], to
      float32 logits [batch, t, vocabulary] of the tokens that follow; s and t are at most
      `longest`.
    """
    source = keras.Input([None], dtype="int32", name="source")
    target = keras.Input([None], dtype="int32", name="target")
    init = keras.initializers.RandomNormal(stddev=0.02)
    embed = layers.Embedding(vocabulary, width, embeddings_initializer=init, name="token")
    seen = ops.expand_dims(ops.not_equal(source, 0), 1)  # [batch, 1, s]

    def start(tokens: keras.KerasTensor, name: str) -> keras.KerasTensor:
        positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
        place = layers.Embedding(longest, width, embeddings_initializer=init, name=f"{name}_place")
        return layers.Dropout(dropout)(embed(tokens) + place(positions))

    def attend(x: keras.KerasTensor, to: keras.KerasTensor | None, name: str, **mask: object):
        h = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm")(x)
        attention = layers.MultiHeadAttention(heads, width // heads, name=name)
        return x + layers.Dropout(dropout)(attention(h, h if to is None else to, **mask))

    def think(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        h = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm")(x)
        h = layers.Dense(4 * width, activation="gelu", name=f"{name}_in")(h)
        return x + layers.Dropout(dropout)(layers.Dense(width, name=f"{name}_out")(h))

    x = start(source, "source")
    for i in range(layers_):
        x = attend(x, None, f"encoder{i}_attention", attention_mask=seen)
        x = think(x, f"encoder{i}_mlp")
    memory = layers.LayerNormalization(epsilon=1e-5, name="memory")(x)
    x = start(target, "target")
    for i in range(layers_):
        x = attend(x, None, f"decoder{i}_attention", use_causal_mask=True)
        x = attend(x, memory, f"decoder{i}_memory", attention_mask=seen)
        x = think(x, f"decoder{i}_mlp")
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    # Logits, and so the loss, are float32 whatever the layers compute in.
    logits = layers.Dense(vocabulary, use_bias=False, dtype="float32", name="logits")(x)
    return keras.Model({"source": source, "target": target}, logits, name="translation")


def longest_of(model: keras.Model) -> int:
    """The length of the longest sequence that a model of `build` takes, in tokens."""
    return model.get_layer("target_place").input_dim


def halves(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The encoder and the decoder of a model of `build`, with its weights.

    Returns:
      The encoder, from source tokens to the memory, float32 [batch, s, width]; and the decoder,
      from memory, source and target tokens to logits.
    """
    source, target = model.input["source"], model.input["target"]
    memory = model.get_layer("memory").output
    return keras.Model(source, memory), keras.Model([memory, source, target], model.output)
