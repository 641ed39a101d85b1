"""Spectrograms and transcripts in TensorBoard."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

_SHOWN = 4


class ShowClips(keras.callbacks.Callback):
    """Shows a few clips: spectrograms at the start, and after each epoch what was recognized."""

    def __init__(
        self,
        features: Sequence[np.ndarray],
        texts: Sequence[str],
        transcribe: Callable[[keras.Model, Sequence[np.ndarray]], list[str]],
        log_dir: str,
    ) -> None:
        """Takes what there is to show; the first clips are shown.

        Args:
          features: float32 [frames, mels] for each clip.
          texts: what is said in each.
          transcribe: says for a model and features what the model recognizes.
          log_dir: TensorBoard's folder.
        """
        super().__init__()
        self._features, self._texts = features[:_SHOWN], texts[:_SHOWN]
        self._transcribe = transcribe
        self._log_dir = log_dir

    def on_train_begin(self, logs: dict | None = None) -> None:
        writer = tf.summary.create_file_writer(self._log_dir)
        with writer.as_default(step=0):
            for text, frames in zip(self._texts, self._features, strict=True):
                # Time goes to the right, and low bands are below.
                picture = np.clip(0.5 + frames.T[None, ::-1, :, None] / 5, 0, 1)
                tf.summary.image(f"spectrogram/{text}", picture)
        writer.close()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        found = self._transcribe(self.model, self._features)
        rows = [f"| {a} | {b} |" for a, b in zip(self._texts, found, strict=True)]
        writer = tf.summary.create_file_writer(self._log_dir)
        with writer.as_default(step=epoch):
            tf.summary.text("transcripts", "\n".join(["| said | recognized |", "|---|---|", *rows]))
        writer.close()
