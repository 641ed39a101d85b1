"""The network of `models.gpt` in tf_keras, for TensorFlow's own strategies; needs tf_keras."""

import tensorflow as tf
import tf_keras
from tf_keras import layers


def build(vocabulary: int, blocks: int, width: int, heads: int, context: int) -> tf_keras.Model:
    """Returns the network without dropout, not compiled; see `models.gpt.model.build`."""
    tokens = tf_keras.Input([None], dtype="int32")
    positions = tf.cumsum(tf.ones_like(tokens), axis=1) - 1
    x = layers.Embedding(vocabulary, width)(tokens) + layers.Embedding(context, width)(positions)
    for _ in range(blocks):
        h = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(h, h, use_causal_mask=True)
        h = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(h))
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    return tf_keras.Model(tokens, layers.Dense(vocabulary, use_bias=False)(x))
