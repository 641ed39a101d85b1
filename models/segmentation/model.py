"""The network: a U-Net, of Keras's own layers."""

import keras
from keras import layers, ops


def build(size: int, classes: int, width: int, levels: int) -> keras.Model:
    """A U-Net (Ronneberger et al., 2015), padded so that the mask has the size of the image.

    On the way down each level halves the image and doubles the channels. On the way up each level
    gets, beside what is below, what the same level made on the way down.

    Args:
      size: pixels of a side, a multiple of 2 ** levels.
      classes: number of classes.
      width: channels of the first level.
      levels: how often the image is halved.

    Returns:
      A model from uint8 or float32 [batch, size, size, 3], 0 to 255, to float32 logits
      [batch, size, size, classes].
    """
    images = keras.Input([size, size, 3], name="images")
    # Roots tell dark pixels apart, whose numbers differ by little: a lake from the forest around.
    x = 2 * ops.sqrt(layers.Rescaling(1 / 255)(images)) - 1
    across = []
    for level in range(levels):
        x = _convolutions(x, width * 2**level, f"down{level}")
        across.append(x)
        x = layers.MaxPooling2D(name=f"down{level}_pool")(x)
    x = _convolutions(x, width * 2**levels, "bottom")
    for level in reversed(range(levels)):
        x = layers.Conv2DTranspose(width * 2**level, 2, strides=2, name=f"up{level}_size")(x)
        x = layers.Concatenate(name=f"up{level}_across")([across[level], x])
        x = _convolutions(x, width * 2**level, f"up{level}")
    # Logits, and so the loss, are float32 whatever the layers compute in.
    return keras.Model(images, layers.Conv2D(classes, 1, dtype="float32", name="logits")(x))


def _convolutions(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    for i in range(2):
        x = layers.Conv2D(
            channels,
            3,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            name=f"{name}_{i}",
        )(x)
    return x
