"""Writing down what a trained model recognizes."""

from collections.abc import Sequence

import keras
import numpy as np

from models import feeding
from models.speech.alphabet import Alphabet
from models.speech.model import STRIDE

_AT_ONCE = 32  # clips


def transcripts(
    alphabet: Alphabet, model: keras.Model, spectrograms: Sequence[np.ndarray]
) -> list[str]:
    """The likeliest text of each clip, by the likeliest symbol of each frame.

    Args:
      alphabet: of the model.
      model: a model of `model.build`.
      spectrograms: float32 [frames, mels] for each clip.
    """
    found = [""] * len(spectrograms)
    for group in feeding.groups_by_length([len(s) for s in spectrograms], _AT_ONCE):
        frames = [len(spectrograms[i]) for i in group]
        padded = [
            np.pad(spectrograms[i], ((0, max(frames) - n), (0, 0)))
            for i, n in zip(group, frames, strict=True)
        ]
        logits = model(np.stack(padded), training=False)
        best = keras.ops.convert_to_numpy(logits).argmax(-1)
        for i, n, symbols in zip(group, frames, best, strict=True):
            found[i] = alphabet.decode(symbols[: -(-n // STRIDE)])  # The rest is padding.
    return found
