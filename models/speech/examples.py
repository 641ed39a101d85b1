"""What is trained and measured on: clips that can be learned, as spectrograms and texts."""

import dataclasses
from collections.abc import Iterable

import numpy as np

import tfps
from models import tables
from models.speech import features
from models.speech.alphabet import frames_needed
from models.speech.clips import Clip
from models.speech.model import STRIDE


@dataclasses.dataclass(frozen=True)
class Examples:
    """Clips with their texts.

    Attributes:
      spectrograms: float32 [frames, mels] for each clip.
      texts: what is said in each.
    """

    spectrograms: list[np.ndarray]
    texts: list[str]


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read.

    Attributes:
      training: clips to train on.
      held_out: clips with texts that no clip of `training` has.
      rate: samples in a second of all clips.
      left_out: number of clips that nothing is said in, that are too long, or too short for texts.
    """

    training: Examples
    held_out: Examples
    rate: int
    left_out: int


def read(clips: Iterable[Clip], mels: int, longest: float) -> Read:
    """Makes examples of clips, a fifth of whose texts are held out, always the same.

    Args:
      clips: what is recorded; all have one rate.
      mels: bands of the spectrograms.
      longest: seconds; longer clips are left out.

    Raises:
      DataError: rates differ, or there are fewer than 2 texts.
    """
    spectrograms: list[np.ndarray] = []
    texts: list[str] = []
    rate = left_out = 0
    for clip in clips:
        rate = rate or clip.rate
        check_rate(clip, rate, "other clips have")
        frames = features.log_mel(clip.wave, clip.rate, mels)
        if _can_be_learned(clip, frames, longest):
            spectrograms.append(frames)
            texts.append(clip.text)
        else:
            left_out += 1
    different = sorted(set(texts))
    held = {different[i] for i in tables.held_out(len(different))[1]}
    parts = {False: Examples([], []), True: Examples([], [])}
    for frames, text in zip(spectrograms, texts, strict=True):
        part = parts[text in held]
        part.spectrograms.append(frames)
        part.texts.append(text)
    return Read(parts[False], parts[True], rate, left_out)


def check_rate(clip: Clip, rate: int, of: str) -> None:
    """Checks that a clip has a rate.

    Args:
      clip: the clip.
      rate: samples in a second.
      of: what has this rate, for the error.

    Raises:
      DataError: the clip has another rate.
    """
    if clip.rate != rate:
        raise tfps.DataError(
            f"{clip.name} has {clip.rate} samples a second, but {of} {rate}; resample the clip"
        )


def _can_be_learned(clip: Clip, frames: np.ndarray, longest: float) -> bool:
    needed = frames_needed(np.array([ord(c) for c in clip.text]))
    return 0 < needed * STRIDE <= len(frames) and len(clip.wave) <= longest * clip.rate
