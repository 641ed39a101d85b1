"""The model in Keras 3 and in tf_keras; `model_torch` is the same model in PyTorch."""

import tensorflow as tf

from benchmarks.wire.sizes import BLOCKS, CONTEXT, HEADS, LEARNING_RATE, VOCABULARY, WIDTH


def keras3(xla: bool = False, computes: bool = True):
    """`models.gpt`'s network, compiled.

    Args:
      xla: compile with XLA; by default, Keras leaves that to GPUs.
      computes: false: give the same variables gradients of the same shapes, the same rows
        of tables too, with next to no arithmetic.
    """
    import keras

    from models.gpt import model as gpt

    model = gpt.build(VOCABULARY, BLOCKS, WIDTH, HEADS, CONTEXT, dropout=0.0)
    if not computes:
        model = _idle(model)
        model.compile(keras.optimizers.Adam(LEARNING_RATE), loss=lambda y, p: p)
        return model
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=xla or "auto",
    )
    return model


def _idle(model):
    import keras
    from keras import ops

    class Idle(keras.Model):
        """Looks tokens and positions up, and adds the means of all other variables."""

        def __init__(self):
            super().__init__()
            self.inner = model

        def call(self, tokens):
            tables = [model.get_layer("token"), model.get_layer("position")]
            positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
            rows = [t(ids) for t, ids in zip(tables, (tokens, positions), strict=True)]
            looked_up = {id(t.embeddings) for t in tables}
            rest = [v for v in self.inner.trainable_variables if id(v) not in looked_up]
            return ops.mean(rows[0] + rows[1], axis=(1, 2)) + sum(ops.mean(v) for v in rest)

    return Idle()


def legacy():
    """The same network in tf_keras, compiled, for TensorFlow's own strategies."""
    import tf_keras

    from benchmarks import tf_keras_gpt

    model = tf_keras_gpt.build(VOCABULARY, BLOCKS, WIDTH, HEADS, CONTEXT)
    model.compile(
        tf_keras.optimizers.Adam(LEARNING_RATE),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def train_step(model, batch, replicas: int = 1):
    """One step of a custom loop with a model of `legacy`.

    Args:
      model: compiled.
      batch: (tokens, next tokens).
      replicas: over how many the optimizer adds gradients up.
    """
    tokens, targets = batch
    with tf.GradientTape() as tape:
        logits = model(tokens, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        loss = tf.reduce_mean(losses) / replicas
    variables = model.trainable_variables
    model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return loss
