"""Recordings of speech and what is said in them: prompts of Asterisk, or LibriSpeech folders."""

import dataclasses
import glob
import gzip
import io
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

import tfps
from models import packages

ENDINGS = (".wav", ".flac")

_TEXTS = "./usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_SOUNDS = "./usr/share/asterisk/sounds/en_US_f_Allison/"
_NOT_SAID = re.compile(r"\[.*?\]|\(.*?\)|<.*?>")  # Such as "[ascending tones]".
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_SIGNS = {**{str(i): word for i, word in enumerate(_DIGITS)}, "*": "star", "#": "pound"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording.

    Attributes:
      name: of the file.
      text: what is said; empty where that is not known.
      wave: float32 [samples], from -1 to 1.
      rate: samples in a second.
    """

    name: str
    text: str
    wave: np.ndarray
    rate: int


def read_prompts() -> Iterator[Clip]:
    """The English prompts of the telephone exchange Asterisk, spoken by one woman, 8000 Hz.

    Prompts in which nothing is said, such as tones, and those with numbers of several digits, of
    which the text does not say how they are spoken, are left out.

    Raises:
      DataError: a package is missing or broken.
    """
    (packed,) = packages.read("asterisk-core-sounds-en.tar", [_TEXTS], "speech")
    texts = {}
    for line in gzip.decompress(packed).decode().splitlines():
        name, colon, text = line.partition(": ")
        if colon and not line.startswith(";") and (said := spoken(text)):
            texts[f"{_SOUNDS}{name}.wav"] = said
    there = set(packages.names("asterisk-core-sounds-en-wav.tar", "speech"))
    names = [name for name in texts if name in there]
    contents = packages.read("asterisk-core-sounds-en-wav.tar", names, "speech")
    for name, content in zip(names, contents, strict=True):
        yield Clip(name, texts[name], *_wave(name, content))


def spoken(text: str) -> str:
    """The words of a prompt's text in small letters; nothing if they are not known.

    Digits and signs that stand alone become the words that are said for them.
    """
    text = _NOT_SAID.sub(" ", text)
    if re.search(r"\d\d|\d\.\d", text):
        return ""
    return letters("".join(f" {_SIGNS[c]} " if c in _SIGNS else c for c in text))


def letters(text: str) -> str:
    """A text in small letters, with apostrophes and single spaces, and nothing else."""
    kept = (c if c.isalpha() or c == "'" else " " for c in text.lower().replace("’", "'"))
    return " ".join("".join(kept).split())


def read_librispeech(root: str) -> Iterator[Clip]:
    """Reads a folder as LibriSpeech has it (Panayotov et al., 2015).

    At any depth are files `*.trans.txt`, of which each line has the name of a clip without its
    ending, a space, and what is said. The clip lies in the same folder, as FLAC or WAV.

    Args:
      root: the folder.

    Raises:
      ConfigError: a package for FLAC is not installed.
      DataError: there is no transcript, or a clip is missing or cannot be read.
    """
    found = sorted(glob.glob(os.path.join(glob.escape(root), "**", "*.trans.txt"), recursive=True))
    if not found:
        raise tfps.DataError(
            f"--data={root} has no file *.trans.txt; give a folder as LibriSpeech has it, with "
            "lines NAME WORDS in such files, beside NAME.flac or NAME.wav"
        )
    for path in found:
        with open(path, encoding="utf-8") as f:
            lines = [line.strip().partition(" ") for line in f if line.strip()]
        for name, _, text in lines:
            base = os.path.join(os.path.dirname(path), name)
            sound = next((base + e for e in ENDINGS if os.path.exists(base + e)), None)
            if sound is None:
                raise tfps.DataError(
                    f"--data: {path} has a line for {name}, but there is no {base}.flac or .wav; "
                    "remove the line, or add the clip"
                )
            yield dataclasses.replace(read(sound), text=letters(text))


def find(path: str) -> list[str]:
    """The clips in a folder, at any depth, in order; or the file that is named.

    Raises:
      DataError: there is none.
    """
    if os.path.isfile(path):
        return [path]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    found = sorted(f for f in found if f.lower().endswith(ENDINGS))
    if not found:
        raise tfps.DataError(
            f"--predict={path} has no clip; give a file or a folder with files {', '.join(ENDINGS)}"
        )
    return found


def read(path: str) -> Clip:
    """Reads a WAV or FLAC file; of several channels the mean is taken.

    Raises:
      ConfigError: a package for FLAC is not installed.
      DataError: the file cannot be read.
    """
    try:
        with open(path, "rb") as f:
            content = f.read()
    except OSError as e:
        raise tfps.DataError(f"{path} cannot be read: {e.strerror}") from e
    return Clip(path, "", *_wave(path, content))


def _wave(name: str, content: bytes) -> tuple[np.ndarray, int]:
    decode = _flac if name.lower().endswith(".flac") else _wav
    try:
        wave, rate = decode(content)
    except (tf.errors.OpError, RuntimeError) as e:
        raise tfps.DataError(
            f"{name} is no sound that can be read; remove it, or convert it to WAV of 16 bits"
        ) from e
    return wave.mean(1), rate


def _wav(content: bytes) -> tuple[np.ndarray, int]:
    wave, rate = tf.audio.decode_wav(content)
    return wave.numpy(), int(rate)


def _flac(content: bytes) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as e:
        raise tfps.ConfigError(
            "soundfile, which reads FLAC, is missing; pip install 'tfps[sound]', or convert the "
            "clips to WAV"
        ) from e
    return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
