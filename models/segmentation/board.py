"""Masks as pictures in TensorBoard."""

import keras
import numpy as np
import tensorflow as tf

_SHOWN = 8


class ShowMasks(keras.callbacks.Callback):
    """Shows after each epoch a few images, and beside each its mask and what the model makes of it.

    What the model gets wrong is black in a fourth picture.
    """

    def __init__(
        self, pixels: np.ndarray, masks: np.ndarray, colours: np.ndarray, log_dir: str
    ) -> None:
        """Takes what there is to show; the images with most classes are shown.

        Args:
          pixels: uint8 [n, size, size, 3].
          masks: uint8 [n, size, size].
          colours: uint8 [classes, 3].
          log_dir: TensorBoard's folder.
        """
        super().__init__()
        classes = [len(np.unique(mask)) for mask in masks]
        shown = np.argsort(classes, kind="stable")[::-1][:_SHOWN]
        self._pixels, self._masks, self._colours = pixels[shown], masks[shown], colours
        self._log_dir = log_dir

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logits = self.model(self._pixels, training=False)
        found = keras.ops.convert_to_numpy(logits).argmax(-1)
        right = np.where(found == self._masks, 255, 0)[..., None].repeat(3, -1)
        rows = [self._pixels, self._colours[self._masks], self._colours[found], right]
        writer = tf.summary.create_file_writer(self._log_dir)
        with writer.as_default(step=epoch):
            side_by_side = np.concatenate(rows, 2).astype(np.uint8)
            tf.summary.image("image, mask, model, right", side_by_side, max_outputs=_SHOWN)
        writer.close()
