"""The network: a few convolutions, of Keras's own layers."""

import keras
from keras import layers

_SMALLEST = 8  # Pixels of a side from which on no block halves the image any more.


def build(size: int, channels: int, classes: int, width: int, dropout: float) -> keras.Model:
    """A convolutional network that halves the image until it is small.

    Args:
      size: pixels of a side.
      channels: 1 for gray, 3 for colours.
      classes: number of classes.
      width: channels of the first block; each block has twice as many as the one before, up to 8
        times the width.
      dropout: dropout rate before the last layer.

    Returns:
      A model from uint8 or float32 [batch, size, size, channels], 0 to 255, to float32 logits
      [batch, classes].
    """
    images = keras.Input([size, size, channels], name="images")
    x = layers.Rescaling(1 / 255)(images)
    block = 0
    while block == 0 or size >= _SMALLEST:
        filters = width * min(2**block, 8)
        for i in range(2):
            x = layers.Conv2D(
                filters, 3, padding="same", activation="relu", name=f"block{block}_{i}"
            )(x)
        x = layers.MaxPooling2D(padding="same")(x)
        size, block = -(-size // 2), block + 1
    x = layers.Flatten()(x)
    x = layers.Dropout(dropout)(x)
    # Logits, and so the loss, are float32 whatever the layers compute in.
    return keras.Model(images, layers.Dense(classes, dtype="float32", name="logits")(x))
