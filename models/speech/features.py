"""From sound to what the network sees: the logarithm of a mel spectrogram."""

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
