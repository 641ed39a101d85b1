"""Which classes are taken for which: the confusion matrix, and what follows from it."""

import numpy as np
import tensorflow as tf

_CELL = 24  # Pixels of a side.
_MOST = 100  # Classes that are shown: with more, the image has more pixels than anybody can see.


def matrix(classes: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """Counts examples by their class and the class that was found.

    Args:
      classes: [n], the true classes.
      found: [n], the classes that were found.
      count: number of classes.

    Returns:
      int64 [count, count]; a row for each true class.
    """
    return np.bincount(classes * count + found, minlength=count**2).reshape(count, count)


def macro_f1(counts: np.ndarray) -> float:
    """The mean over classes of F1, the harmonic mean of precision and recall.

    Args:
      counts: of `matrix`. A class that is neither there nor found has an F1 of 0.
    """
    right = np.diag(counts)
    return float(np.mean(2 * right / np.maximum(counts.sum(0) + counts.sum(1), 1)))


def show(log_dir: str, names: list[str], counts: np.ndarray) -> None:
    """Shows the matrix in TensorBoard, as an image and as a table, unless there are many classes.

    Args:
      log_dir: TensorBoard's folder.
      names: of the classes.
      counts: of `matrix`. In the image, a row has the shares of a true class, white for none.
    """
    if len(names) > _MOST:
        return
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = np.kron(1 - shares, np.ones([_CELL, _CELL]))[None, :, :, None]
    head = f"| true class | {' | '.join(names)} |\n|---|{'---:|' * len(names)}\n"
    rows = (
        f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(names, counts, strict=True)
    )
    writer = tf.summary.create_file_writer(log_dir)
    with writer.as_default(step=0):
        tf.summary.image("confusion", image.astype(np.float32))
        tf.summary.text("confusion", head + "\n".join(rows))
    writer.close()
