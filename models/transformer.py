"""The transformer encoder of BERT, of Keras's own layers, which models of text share."""

from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops

_SPREAD = 0.02  # Standard deviation of new embeddings.

PADDING = 0  # The id of the token that fills up short sequences.


class Size(NamedTuple):
    """The size of an encoder.

    Attributes:
      vocabulary: number of token ids.
      layers: number of blocks.
      width: width of the vector of each token, a multiple of `heads`.
      heads: number of attention heads in a block.
      longest: length of the longest sequence, in tokens.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    longest: int


def encoder(
    size: Size, tokens: keras.KerasTensor, dropout: float
) -> tuple[keras.KerasTensor, keras.Layer]:
    """Applies a new encoder of BERT (Devlin et al., 2018).

    Blocks normalize after their sums. There are no segments; where a pre-trained model has them,
    the first segment is added to its positions.

    Args:
      size: of the encoder.
      tokens: int32 [batch, time], time at most `size.longest`. No token attends to `PADDING`.
      dropout: dropout rate in attention and on both branches of a block.

    Returns:
      A vector of each token, [batch, time, width], and the layer of the tokens' embeddings.
    """
    init = keras.initializers.TruncatedNormal(stddev=_SPREAD)
    wide = keras.initializers.RandomNormal(stddev=size.width**-0.5)  # BERT's 0.02 is for 768.
    embed = layers.ReversibleEmbedding(
        size.vocabulary, size.width, embeddings_initializer=init, name="token"
    )
    embed_position = layers.Embedding(
        size.longest, size.width, embeddings_initializer=init, name="position"
    )
    positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    x = _norm("embedding_norm")(embed(tokens) + embed_position(positions))
    x = layers.Dropout(dropout, name="embedding_dropout")(x)
    seen = ops.expand_dims(ops.not_equal(tokens, PADDING), 1)  # [batch, 1, time]
    for i in range(size.layers):
        h = layers.MultiHeadAttention(
            size.heads,
            size.width // size.heads,
            dropout=dropout,
            kernel_initializer=wide,
            name=f"block{i}_attention",
        )(x, x, attention_mask=seen)
        h = layers.Dropout(dropout, name=f"block{i}_attention_dropout")(h)
        x = _norm(f"block{i}_attention_norm")(x + h)
        h = layers.Dense(4 * size.width, activation="gelu", name=f"block{i}_mlp_in")(x)
        h = layers.Dense(size.width, name=f"block{i}_mlp_out")(h)
        h = layers.Dropout(dropout, name=f"block{i}_mlp_dropout")(h)
        x = _norm(f"block{i}_mlp_norm")(x + h)
    return x, embed


def begin_with_waves(model: keras.Model) -> None:
    """Gives the positions of a new encoder waves to begin with (Vaswani et al., 2017).

    Attention finds a neighbour by one linear map for all positions then, and has not to learn each
    pair of positions. Masked words in a small text are found after hundreds of steps in place of
    thousands.

    Args:
      model: has the layers that `encoder` makes.
    """
    size = size_of(model)
    half = -(-size.width // 2)
    angles = np.arange(size.longest)[:, None] / 10000 ** (np.arange(half) / half)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, : size.width]
    # The embeddings of tokens are about as large.
    model.get_layer("position").set_weights([_SPREAD * 2**0.5 * waves])


def optimizer(rate: float, warmup: int, updates: int) -> keras.optimizers.Optimizer:
    """AdamW with linear warm-up, and a rate that falls to 0 as a cosine does.

    Args:
      rate: the peak of the learning rate.
      warmup: updates of warm-up; half of all updates at most.
      updates: of the training.
    """
    warmup = min(warmup, updates // 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else rate,
        decay_steps=max(1, updates - warmup),
        warmup_target=rate if warmup else None,
        warmup_steps=warmup,
    )
    made = keras.optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0)
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
    return made


def size_of(model: keras.Model) -> Size:
    """The size of the encoder in a model.

    Args:
      model: has the layers that `encoder` makes.

    Raises:
      ValueError: the model has no layer `token`, and so no encoder.
    """
    token = model.get_layer("token")
    blocks = [layer.name for layer in model.layers if layer.name.endswith("_attention")]
    heads = model.get_layer(blocks[0]).num_heads
    longest = model.get_layer("position").input_dim
    return Size(token.input_dim, len(blocks), token.output_dim, heads, longest)


# Layer name -> its weights, in the order of `layer.get_weights()`.
Weights = dict[str, list[np.ndarray]]


def weights(model: keras.Model) -> Weights:
    """The weights of the encoder in a model.

    Args:
      model: has the layers that `encoder` makes.
    """
    return {layer.name: layer.get_weights() for layer in _layers(model) if layer.weights}


def set_weights(model: keras.Model, values: Weights) -> None:
    """Gives the encoder in a model its weights.

    Args:
      model: has the layers that `encoder` makes.
      values: of an encoder of the same size.
    """
    for layer in _layers(model):
        if layer.name in values:
            layer.set_weights(values[layer.name])


def _layers(model: keras.Model) -> list[keras.Layer]:
    begins = ("token", "position", "embedding_norm", "block")
    return [layer for layer in model.layers if layer.name.startswith(begins)]


def _norm(name: str) -> keras.Layer:
    return layers.LayerNormalization(epsilon=1e-12, name=name)
