"""From sound to what the network sees: the logarithm of a mel spectrogram, and batches of them."""

import functools

import numpy as np
import tensorflow as tf

_WINDOW, _STEP = 0.025, 0.01  # s
_LOWEST = 60.0  # Hz
_FLOOR = 1e-6  # Of a power, so that silence has a logarithm.


def log_mel(wave: np.ndarray, rate: int, mels: int) -> np.ndarray:
    """The log-mel spectrogram of a recording, each band with mean 0 and variance 1.

    Args:
      wave: float32 [samples].
      rate: samples in a second.
      mels: number of bands, from 60 Hz to half the rate.

    Returns:
      float32 [frames, mels], with 100 frames in a second; at least one frame.
    """
    window, step = int(_WINDOW * rate), int(_STEP * rate)
    padded = np.pad(wave, (0, max(0, window - len(wave))))
    power = tf.abs(tf.signal.stft(padded, window, step)) ** 2
    bands = np.log(power.numpy() @ _bands(mels, power.shape[-1], rate) + _FLOOR)
    return (bands - bands.mean(0)) / (bands.std(0) + 1e-3)


@functools.cache
def _bands(mels: int, bins: int, rate: int) -> np.ndarray:
    return tf.signal.linear_to_mel_weight_matrix(mels, bins, rate, _LOWEST, rate / 2).numpy()


def in_order_of_length(features: list[np.ndarray], batch_size: int) -> list[np.ndarray]:
    """Puts clips of similar lengths together, so that batches need little padding.

    Args:
      features: float32 [frames, mels] for each clip.
      batch_size: smallest size of a batch, unless there are fewer clips at all.

    Returns:
      For each batch the indices of its clips; batches differ by one clip at most.
    """
    order = np.argsort([len(f) for f in features], kind="stable")
    return np.array_split(order, max(1, len(order) // batch_size))


def batches(
    features: list[np.ndarray], labels: list[np.ndarray], batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """A dataset of batches of clips of similar lengths, padded with zeros.

    Args:
      features: float32 [frames, mels] for each clip.
      labels: int32 [symbols] for each clip, each value above 0.
      batch_size: smallest size of a batch, unless there are fewer clips at all.
      seed: of the order of batches, which is another one in each epoch; None to keep the order.

    Returns:
      A dataset of (float32 [batch, frames, mels], int32 [batch, symbols]).
    """
    groups = in_order_of_length(features, batch_size)
    order = np.concatenate(groups)
    ends = tf.constant(np.cumsum([0, *map(len, groups)]))
    x, y = (
        tf.RaggedTensor.from_row_lengths(
            np.concatenate([rows[i] for i in order]), [len(rows[i]) for i in order]
        )
        for rows in (features, labels)
    )
    chosen = tf.data.Dataset.range(len(groups))
    if seed is not None:
        chosen = chosen.shuffle(len(groups), seed)
    return chosen.map(
        lambda i: tuple(rows[ends[i] : ends[i + 1]].to_tensor() for rows in (x, y))
    ).prefetch(2)
