"""How well masks fit, and what colours alone would tell."""

import numpy as np

_LEVELS = 16  # Of each of red, green and blue.


def iou(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Intersection over union of each class, over all pixels together.

    Args:
      truth: integers from 0 to classes - 1, of any shape.
      found: the same, of the same shape.
      classes: number of classes.

    Returns:
      float64 [classes], NaN for a class that is in neither.
    """
    pairs = truth.ravel().astype(np.int64) * classes + found.ravel()
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    both = np.diag(counts).astype(np.float64)
    either = counts.sum(0) + counts.sum(1) - both
    return np.divide(both, either, out=np.full(classes, np.nan), where=either > 0)


def weights(masks: np.ndarray, classes: int, exponent: float) -> np.ndarray:
    """How much a pixel of each class counts in training, so that rare classes are learned.

    Args:
      masks: integers from 0 to classes - 1, of any shape.
      classes: number of classes.
      exponent: a class that is n times as rare counts n ** exponent times as much; 0 for all alike.

    Returns:
      float32 [classes], of which the mean over all pixels is 1; 0 for a class that has none.
    """
    shares = np.bincount(masks.ravel(), minlength=classes) / masks.size
    found = np.power(shares, -exponent, out=np.zeros(classes), where=shares > 0)
    return (found / (shares * found).sum()).astype(np.float32)


class ColourTable:
    """Says for each colour the class that it has most often; so it is as right as any threshold.

    Colours are counted in 16 levels of red, green and blue each.
    """

    def __init__(self, pixels: np.ndarray, masks: np.ndarray, classes: int):
        """Counts the colours of images.

        Args:
          pixels: uint8 [n, size, size, 3].
          masks: uint8 [n, size, size].
          classes: number of classes.
        """
        pairs = _level(pixels) * classes + masks
        counts = np.bincount(pairs.ravel(), minlength=_LEVELS**3 * classes).reshape(-1, classes)
        # A colour that was never met has the class that is most frequent at all.
        self._classes = np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())

    def masks(self, pixels: np.ndarray) -> np.ndarray:
        """The masks of images, int64 [n, size, size]."""
        return self._classes[_level(pixels)]


def _level(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels.astype(np.int64) * _LEVELS // 256, -1, 0)
    return (red * _LEVELS + green) * _LEVELS + blue
