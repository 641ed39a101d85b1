"""Files of images, as arrays."""

import os

import numpy as np
import tensorflow as tf
from absl import flags

import tfps

FLAGS = flags.FLAGS

flags.DEFINE_integer(
    "image_size", 64, "Pixels of a side of the images that the model takes.", lower_bound=8
)

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp")


def find(path: str) -> list[str]:
    """The files of images in a folder, at any depth, in order; or the file that is named."""
    if os.path.isfile(path):
        return [path]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sorted(f for f in found if f.lower().endswith(ENDINGS))


def find_to_predict(path: str) -> list[str]:
    """The files of images that --predict names.

    Args:
      path: an image or a folder.

    Raises:
      DataError: there is no image.
    """
    found = find(path)
    if not found:
        raise tfps.DataError(
            f"--predict={path} has no image; give an image or a folder with files "
            f"{', '.join(ENDINGS)}"
        )
    return found


def read(path: str, flag: str = "data") -> np.ndarray:
    """Reads an image file, uint8 [height, width, 3]; of an animation the first image.

    Args:
      path: the file.
      flag: the flag that named the file, for errors.

    Raises:
      DataError: the file is no image that TensorFlow reads.
    """
    try:
        with open(path, "rb") as f:
            return tf.io.decode_image(f.read(), 3, expand_animations=False).numpy()
    except (OSError, tf.errors.OpError) as e:
        raise tfps.DataError(
            f"--{flag}: {path} is no image that can be read; remove it, or convert it to PNG"
        ) from e


def resized(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """The image in another size, uint8 [size, size, channels].

    Args:
      image: uint8 [height, width, 3].
      size: pixels of a side to which the image is resized, whatever its proportions.
      channels: 1 for gray, 3 for colours.
    """
    if channels == 1:
        image = tf.image.rgb_to_grayscale(image)
    found = tf.image.resize(image, [size, size], antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(found), 0, 255), tf.uint8).numpy()


def decode(path: str, size: int, channels: int, flag: str = "data") -> np.ndarray:
    """Reads an image file in a given size, uint8 [size, size, channels].

    Args:
      path: the file.
      size: pixels of a side.
      channels: 1 for gray, 3 for colours.
      flag: the flag that named the file, for errors.

    Raises:
      DataError: the file is no image that TensorFlow reads.
    """
    return resized(read(path, flag), size, channels)
